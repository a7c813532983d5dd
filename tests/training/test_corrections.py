"""FedProx against its closed form and a loop that writes its term out; nothing of it where mu is 0."""

import numpy as np
import pytest
import torch
from tests.data.helpers import split_of
from tests.training.test_loop import PLAN, rows

from silotune.data.silos.batches import collate, plan_round
from silotune.model import lora
from silotune.model.adapter import initial_adapter
from silotune.model.base import place
from silotune.model.tuner import tuner
from silotune.settings import LoraSettings, TrainingSettings
from silotune.training.corrections import nothing, proximal
from silotune.training.local_run import TrainingTask, learning_rate
from silotune.training.loop import train_round
from silotune.training.loss import plain_logits, summed_losses


@pytest.fixture
def resident(tiny_base):
    torch.set_num_threads(1)
    return tuner(str(tiny_base), LoraSettings(r=2), place("cpu", "auto"))


def received(spec):
    drawn = np.random.default_rng(3)
    return {name: value + drawn.normal(0, 0.05, value.shape).astype(np.float32)
            for name, value in initial_adapter(spec, 0).items()}  # fmt: skip


def trained(resident, mu, steps=4):
    examples = split_of(resident.tokenizer, rows(), 200)
    settings = TrainingSettings(rounds=1, steps=steps, batch=2, learning_rate=0.01, proximal=mu)
    return train_round(resident, PLAN, task(resident, examples), settings, 0, 1)[1]


def task(resident, examples, drift=None):
    return TrainingTask("s", examples, received(resident.spec), resident.spec.names, drift=drift or {})


def moved(resident, adapter):
    start = received(resident.spec)
    return sum(float(((adapter[name] - start[name]) ** 2).sum()) for name in start) ** 0.5


def test_the_gradient_is_that_of_the_term():
    """d/d theta of L + mu / 2 |theta - theta_t|^2 is dL + mu (theta - theta_t)."""
    theta = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    correct = proximal(0.25, [theta])
    with torch.no_grad():
        theta += torch.tensor([0.5, 1.0, -1.0])
    theta.grad = torch.tensor([10.0, 20.0, 30.0])
    correct([theta])
    assert theta.grad.tolist() == [10.125, 20.25, 29.75]


def test_where_mu_is_0_there_is_nothing_to_add(resident):
    assert proximal(0.0, []) is nothing
    one, other = trained(resident, 0.0), trained(resident, 0.0)
    assert all((one[name] == other[name]).all() for name in one)


def test_at_a_rounds_first_step_it_is_0_to_the_bit(resident):
    one, other = trained(resident, 0.0, steps=1), trained(resident, 100.0, steps=1)
    assert all((one[name] == other[name]).all() for name in one)


def test_the_loop_equals_one_that_writes_the_term_out(resident):
    examples, mu = split_of(resident.tokenizer, rows(), 200), 0.5
    ours = trained(resident, mu)
    lora.put(resident.model, received(resident.spec))
    factors = list(lora.factors(resident.model).values())
    starts = [factor.detach().clone() for factor in factors]
    settings = TrainingSettings(rounds=1, steps=4, batch=2, learning_rate=0.01)
    optimizer = torch.optim.AdamW(factors, lr=1.0, weight_decay=0.0)
    for number, step in enumerate(plan_round(settings, examples.lengths, 0, "s", 1), 1):
        optimizer.param_groups[0]["lr"] = learning_rate(settings, number / 4)
        optimizer.zero_grad()
        batches = [collate([examples[row] for row in rows_], 0, "cpu") for rows_ in step]
        loss = sum(summed_losses(plain_logits(resident.model, batch), batch).sum() for batch in batches)
        away = sum(((factor - start) ** 2).sum() for factor, start in zip(factors, starts, strict=True))
        (loss / sum(batch.loss_tokens for batch in batches) + mu / 2 * away).backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
    theirs = lora.take(resident.model)
    assert max(float(abs(ours[name] - theirs[name]).max()) for name in ours) < 1e-5
    assert max(float(abs(ours[name] - other).max()) for name, other in trained(resident, 0.0).items()) > 1e-4


def test_a_drift_is_taken_off_after_each_step_times_its_rate(resident):
    """theta -= eta_h (c - c_k) whatever AdamW makes of the gradient: here of one that is 0, so that nothing else moves."""
    examples, start = split_of(resident.tokenizer, rows(), 200), received(resident.spec)
    drift = {name: np.full(value.shape, 0.5, np.float32) for name, value in start.items()}
    settings = TrainingSettings(rounds=1, steps=4, batch=2, learning_rate=0.01, clip=1e-30)
    totals, adapter = train_round(resident, PLAN, task(resident, examples, drift), settings, 0, 1)
    rates = [learning_rate(settings, number / 4) for number in (1, 2, 3, 4)]
    assert totals.rates == pytest.approx(sum(rates))
    for name, value in adapter.items():
        assert np.abs(value - (start[name] - 0.5 * sum(rates))).max() < 1e-6


def test_without_a_drift_and_with_one_of_0_training_is_plain_to_the_bit(resident):
    examples = split_of(resident.tokenizer, rows(), 200)
    settings = TrainingSettings(rounds=1, steps=4, batch=2, learning_rate=0.01)
    still = {name: np.zeros(shape, np.float32) for name, shape in resident.spec.shapes}
    _, adapter = train_round(resident, PLAN, task(resident, examples, still), settings, 0, 1)
    plain = trained(resident, 0.0)
    assert all((value == plain[name]).all() for name, value in adapter.items())


def test_a_larger_mu_holds_a_silo_nearer(resident):
    distances = [moved(resident, trained(resident, mu, steps=20)) for mu in (0.0, 1.0, 10.0)]
    assert distances[0] > distances[1] > distances[2] > 0
