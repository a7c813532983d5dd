"""The server's optimizers against their closed forms and against PyTorch's own."""

import numpy as np
import pytest
import torch

from silotune.algorithms.interface import ServerState
from silotune.algorithms.server_optimizers import OPTIMIZERS, adam, heavy_ball, nesterov, optimizer_of, plain
from silotune.recipe import check_recipe
from silotune.settings import SERVER_OPTIONS, FederationSettings

SHAPES = {"x.lora_A.weight": (2, 5), "x.lora_B.weight": (3, 2)}


def drawn(seed, scale=1e-3):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(scale=scale, size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def after(optimizer, updates, start=None):
    state = ServerState(0, start or drawn(99, 1.0))
    for update in updates:
        state = optimizer.apply(state, update)
    return state


def same(one, other):
    return all(one[name].tobytes() == other[name].tobytes() for name in SHAPES)


def test_without_momentum_all_are_plain_to_the_bit():
    updates = [drawn(seed) for seed in range(5)]
    expected = after(plain(0.7), updates)
    assert expected.round == 5 and not expected.slots
    for optimizer in (heavy_ball(0.7, 0.0), nesterov(0.7, 0.0)):
        assert same(after(optimizer, updates).adapter, expected.adapter)


@pytest.mark.parametrize("ahead", [False, True])
def test_momentum_is_that_of_pytorchs_sgd(ahead):
    start, updates = drawn(99, 1.0), [drawn(seed) for seed in range(6)]
    tensors = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in start.items()}
    theirs = torch.optim.SGD(tensors.values(), lr=0.15, momentum=0.9, nesterov=ahead)
    for update in updates:
        for name, tensor in tensors.items():
            tensor.grad = -torch.tensor(update[name], dtype=torch.float64)
        theirs.step()
    found = after((nesterov if ahead else heavy_ball)(0.15, 0.9), updates).adapter
    assert all(np.abs(found[name] - tensors[name].detach().numpy()).max() < 1e-6 for name in SHAPES)


def test_adam_is_that_of_pytorch():
    start, updates = drawn(99, 1.0), [drawn(seed) for seed in range(6)]
    tensors = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in start.items()}
    theirs = torch.optim.Adam(tensors.values(), lr=1e-3, betas=(0.9, 0.99), eps=1e-5)
    for update in updates:
        for name, tensor in tensors.items():
            tensor.grad = -torch.tensor(update[name], dtype=torch.float64)
        theirs.step()
    found = after(adam(1e-3, 0.9, 0.99, 1e-5), updates).adapter
    assert all(np.abs(found[name] - tensors[name].detach().numpy()).max() < 1e-6 for name in SHAPES)


def test_adams_first_step_is_the_rate_whatever_the_size():
    """m / (1 - beta) is D and sqrt(v / (1 - beta2)) is |D|: the step is eta D / (|D| + epsilon)."""
    update, start = drawn(1), {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    found = after(adam(1e-3, 0.9, 0.99, 1e-5), [update], start).adapter
    for name, value in update.items():
        assert np.abs(found[name] - 1e-3 * value / (np.abs(value) + 1e-5)).max() < 1e-9


@pytest.mark.parametrize(("name", "gain"), [("plain", 1.0), ("momentum", 1.5), ("nesterov", 1.5)])
def test_the_steady_gain_by_default_is_the_stated_one(name, gain):
    update = drawn(1)
    optimizer = optimizer_of(FederationSettings(server_optimizer=name))
    state = after(optimizer, [update] * 200)
    moved = optimizer.apply(state, update).adapter["x.lora_A.weight"] - state.adapter["x.lora_A.weight"]
    assert moved == pytest.approx(gain * update["x.lora_A.weight"], rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_a_round_does_not_train_stays_untouched_with_its_slots(name):
    optimizer = optimizer_of(FederationSettings(server_optimizer=name))
    one, other = ({key: drawn(seed)[key]} for seed, key in ((1, "x.lora_B.weight"), (2, "x.lora_A.weight")))
    first = after(optimizer, [one])
    second = optimizer.apply(first, other)
    assert (second.adapter["x.lora_B.weight"] == first.adapter["x.lora_B.weight"]).all()
    kept = {slot: value for slot, value in second.slots.items() if slot.startswith("x.lora_B.weight/")}
    assert kept.keys() == first.slots.keys() and all((kept[slot] == first.slots[slot]).all() for slot in kept)
    if name == "adam":  # each tensor counts its own rounds
        third = optimizer.apply(second, one)
        assert [third.slots[f"{tensor}/t"].tolist() for tensor in SHAPES] == [[1.0], [2.0]]


def test_every_name_has_its_rule_and_its_options():
    assert OPTIMIZERS.keys() == SERVER_OPTIONS.keys()
    for name in OPTIMIZERS:
        assert optimizer_of(FederationSettings(server_optimizer=name)).step


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"server_momentum": 0.5}, "server_momentum"),
        ({"server_optimizer": "momentum", "server_beta2": 0.5}, "server_beta2"),
        ({"server_optimizer": "nesterov", "server_epsilon": 0.5}, "server_epsilon"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(given, key):
    with pytest.raises(Exception, match=f"`{key}` and `server_optimizer = .* do not go together"):
        check_recipe({"federation": given}, "recipe")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"server_optimizer": "adam", "server_rate": 2.0}, "the size of a step, of every number in every round"),
        ({"server_optimizer": "momentum", "server_rate": 2.0}, "is 20: so many times the mean update"),
        ({"server_optimizer": "adam", "server_beta2": 0.99999999}, "server_beta2"),
    ],
)
def test_a_rate_that_was_meant_for_another_optimizer_is_refused(given, says):
    with pytest.raises(Exception, match=says):
        check_recipe({"federation": given}, "recipe")


def test_options_that_are_given_take_the_place_of_the_defaults():
    given = FederationSettings(server_optimizer="adam", server_rate=0.05, server_beta2=0.5)
    assert given.server_options == {"rate": 0.05, "momentum": 0.9, "beta2": 0.5, "epsilon": 1e-5}
