"""The local loop: schedule, accumulation, determinism, and agreement with a loop written out plainly."""

import math

import pytest
import torch
from tests.data.helpers import split_of

from silotune.data.read.rows import Row, Turn
from silotune.data.silos.batches import collate, plan_round
from silotune.data.tokenize.split import Split
from silotune.errors import DivergedError
from silotune.model import lora
from silotune.model.adapter import initial_adapter
from silotune.model.base import place
from silotune.model.tuner import tuner
from silotune.settings import LoraSettings, TrainingSettings
from silotune.training import loop
from silotune.training.evaluation import evaluate
from silotune.training.forward import ForwardPlan
from silotune.training.local_run import TrainingTask, learning_rate
from silotune.training.loop import train_round
from silotune.training.loss import plain_logits, summed_losses

PLAN = ForwardPlan(head=True, start=False)


def rows(count=7):
    return [
        Row((Turn("user", "red " * (i + 1)), Turn("assistant", "blue stone " * (1 + i % 3))), i) for i in range(count)
    ]


@pytest.fixture
def resident(tiny_base):
    torch.set_num_threads(1)
    return tuner(str(tiny_base), LoraSettings(r=2, dropout=0.1), place("cpu", "auto"))


@pytest.fixture
def examples(resident):
    return split_of(resident.tokenizer, rows(), 200)


def run(resident, examples, settings, round_=1, seed=0):
    task = TrainingTask("s", examples, initial_adapter(resident.spec, 0), resident.spec.names)
    return train_round(resident, PLAN, task, settings, seed, round_)


def test_the_schedule_spans_all_rounds():
    settings = TrainingSettings(learning_rate=1.0, warmup=0.1, final_rate=0.2)
    assert learning_rate(settings, 0.05) == pytest.approx(0.5)
    assert learning_rate(settings, 0.1) == pytest.approx(1.0)
    assert learning_rate(settings, 0.55) == pytest.approx(0.6)
    assert learning_rate(settings, 1.0) == pytest.approx(0.2)
    assert learning_rate(TrainingSettings(learning_rate=1.0, warmup=0.0), 1e-9) == pytest.approx(1.0)


def test_same_seed_same_bits_and_other_seeds_other_bits(resident, examples):
    settings = TrainingSettings(rounds=2, steps=3, batch=2, learning_rate=0.01)
    (totals, one), (_, two) = run(resident, examples, settings), run(resident, examples, settings)
    assert all((one[name] == two[name]).all() for name in one)
    assert totals.steps == 3 and math.isfinite(totals.loss) and totals.loss_tokens > 0
    for other in (run(resident, examples, settings, round_=2)[1], run(resident, examples, settings, seed=1)[1]):
        assert any((one[name] != other[name]).any() for name in one)


def test_the_loop_equals_one_written_out_with_plain_logits(tiny_base):
    resident = tuner(str(tiny_base), LoraSettings(r=2), place("cpu", "auto"))
    examples = split_of(resident.tokenizer, rows(), 200)
    settings = TrainingSettings(
        rounds=1, steps=4, batch=2, accumulation=2, learning_rate=0.01, clip=0.5, weight_decay=0.1
    )
    _, ours = run(resident, examples, settings)
    lora.put(resident.model, initial_adapter(resident.spec, 0))
    factors = list(lora.factors(resident.model).values())
    optimizer = torch.optim.AdamW(factors, lr=1.0, weight_decay=0.1)
    for number, step in enumerate(plan_round(settings, examples.lengths, 0, "s", 1), 1):
        optimizer.param_groups[0]["lr"] = learning_rate(settings, number / 4)
        optimizer.zero_grad()
        batches = [collate([examples[row]], 0, "cpu") for rows_ in step for row in rows_]
        loss = sum(summed_losses(plain_logits(resident.model, batch), batch).sum() for batch in batches)
        (loss / sum(batch.loss_tokens for batch in batches)).backward()
        torch.nn.utils.clip_grad_norm_(factors, 0.5)
        optimizer.step()
    theirs = lora.take(resident.model)
    assert max(float(abs(ours[name] - theirs[name]).max()) for name in ours) < 1e-5


def rounds_of(resident, examples, moments=None, trainable=lambda _: None):
    """Three rounds, each going on from the adapter of the last one."""
    settings = TrainingSettings(rounds=3, steps=2, batch=2, learning_rate=0.01, weight_decay=0.1)
    adapter = initial_adapter(resident.spec, 0)
    for number in (1, 2, 3):
        task = TrainingTask("s", examples, adapter, trainable(number) or resident.spec.names, moments=moments)
        _, adapter = train_round(resident, PLAN, task, settings, 0, number)
    return adapter


def test_moments_that_are_kept_are_those_of_an_optimizer_that_lives_on(resident, examples, monkeypatch):
    kept, anew = rounds_of(resident, examples, {}), rounds_of(resident, examples)
    living = []

    def make_one(parameters, settings, make=loop.make_optimizer):
        living.extend([] if living else [make(parameters, settings)])
        return living[0]

    monkeypatch.setattr(loop, "make_optimizer", make_one)
    monkeypatch.setattr(loop, "resume", lambda *_: None)
    lives_on = rounds_of(resident, examples)
    assert all(kept[name].tobytes() == lives_on[name].tobytes() for name in kept)
    assert any((kept[name] != anew[name]).any() for name in kept)


def test_moments_of_what_is_not_trained_stay(resident, examples):
    spec, moments, seen = resident.spec, {}, []

    def alternately(number):
        seen.append({name: value.tobytes() for name, value in moments.items()})
        return spec.with_role("B" if number % 2 else "A")

    rounds_of(resident, examples, moments, alternately)
    of_b = {name for name in moments if "lora_B" in name}
    assert seen[1].keys() == of_b and all(seen[2][name] == seen[1][name] for name in of_b)
    assert {float(moments[f"t/{name}"][0]) for name in spec.with_role("B")} == {4.0}
    assert {float(moments[f"t/{name}"][0]) for name in spec.with_role("A")} == {2.0}
    assert {moments[f"{kind}/{name}"].shape for kind in "mv" for name, _ in spec.shapes} == {s for _, s in spec.shapes}


def test_accumulation_equals_a_larger_batch(resident, examples):
    resident = tuner(resident.model.get_base_model().name_or_path, LoraSettings(r=2), place("cpu", "auto"))
    whole = TrainingSettings(rounds=1, steps=1, batch=6, learning_rate=0.01)
    parts = TrainingSettings(rounds=1, steps=1, batch=3, accumulation=2, learning_rate=0.01)
    one, two = run(resident, examples, whole)[1], run(resident, examples, parts)[1]
    assert max(float(abs(one[name] - two[name]).max()) for name in one) < 1e-5


def test_a_loss_that_is_not_finite_is_told(resident, examples):
    adapter = initial_adapter(resident.spec, 0)
    spoilt = {name: value + float("nan") for name, value in adapter.items()}
    task = TrainingTask("s", examples, spoilt, resident.spec.names)
    with pytest.raises(DivergedError, match="not finite at step 1"):
        train_round(resident, PLAN, task, TrainingSettings(steps=1, batch=2), 0, 1)


def test_evaluation_equals_row_by_row_and_stops_when_asked(resident, examples):
    lora.put(resident.model, initial_adapter(resident.spec, 0))
    score = evaluate(resident, PLAN, examples)
    single = [
        evaluate(resident, PLAN, Split(examples.store, examples.chosen[row : row + 1])) for row in range(len(examples))
    ]
    assert score.loss == pytest.approx(sum(one.loss for one in single), rel=1e-5)
    assert (score.tokens, score.correct) == (sum(o.tokens for o in single), sum(o.correct for o in single))
    assert score.tokens == sum(example.loss_tokens for example in examples)
    assert evaluate(resident, PLAN, Split(examples.store, examples.chosen[:0])).tokens == 0

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(resident, PLAN, examples, stop)
