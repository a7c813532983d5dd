"""What the server makes of a round's mean update D_t: the pseudo-gradient of a server optimizer.

    plain      theta += eta D
    momentum   v = beta v + D;  theta += eta v                       gain of a steady D: eta / (1 - beta)
    nesterov   v = beta v + D;  theta += eta (D + beta v)            the same gain, ahead of it
    adam       m = beta m + (1 - beta) D;  v = beta2 v + (1 - beta2) D^2
               theta += eta (m / (1 - beta^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

Each works on every tensor by itself, and on those alone that a round trained: what is kept of the others does not
move, and t counts a tensor's own rounds. So any method goes with any of them. All is elementwise in float32, the same
bits on every machine.

Sources: momentum, Tzu-Ming Harry Hsu, Hang Qi, Matthew Brown, arXiv 1909.06335; Adam, Sashank Reddi et al., "Adaptive
Federated Optimization", ICLR 2021, arXiv 2003.00295, with the bias correction of Kingma and Ba, ICLR 2015, arXiv
1412.6980; Nesterov, Arthur Douillard et al., "DiLoCo", arXiv 2311.08105.

The rates by default are for LoRA and some tens of rounds. The steady gain of momentum and Nesterov is then 1.5, where
DiLoCo's (0.7 and 0.9) would be 7. Adam's rate is the size of a step, about the median |D| of a LoRA update, and its
epsilon is far below it: with the 1e-3 that is common it would be momentum with another name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from silotune.algorithms.interface import ServerState
from silotune.model.adapter import AdapterState
from silotune.settings import FederationSettings, ServerOptimizerName

Array = NDArray[np.float32]
Kept = Mapping[str, Array]
"""What is kept of one tensor, by the slot's name; a slot that is not there yet is 0."""


@dataclass(frozen=True)
class ServerOptimizer:
    """A rule for one tensor: (mean update, what is kept of it) -> (what to add to it, what is kept from now on)."""

    step: Callable[[Array, Kept], tuple[Array, Kept]]

    def apply(self, state: ServerState, update: AdapterState) -> ServerState:
        """The state after a round.

        Args:
            state: before it.
            update: mean updates of the tensors that the round trained.
        """
        adapter, slots = dict(state.adapter), dict(state.slots)
        for name, mean in update.items():
            before = {
                slot.removeprefix(f"{name}/"): value for slot, value in slots.items() if slot.startswith(f"{name}/")
            }
            added, kept = self.step(mean, before)
            adapter[name] = adapter[name] + added
            slots |= {f"{name}/{slot}": value for slot, value in kept.items()}
        return ServerState(state.round + 1, adapter, slots)


def plain(rate: float) -> ServerOptimizer:
    """The mean update times a rate."""

    def step(mean: Array, kept: Kept) -> tuple[Array, Kept]:
        return np.float32(rate) * mean, kept

    return ServerOptimizer(step)


def heavy_ball(rate: float, momentum: float) -> ServerOptimizer:
    """Momentum as in PyTorch's SGD."""

    def step(mean: Array, kept: Kept) -> tuple[Array, Kept]:
        velocity = _velocity(mean, kept, momentum)
        return np.float32(rate) * velocity, {"velocity": velocity}

    return ServerOptimizer(step)


def nesterov(rate: float, momentum: float) -> ServerOptimizer:
    """Nesterov's momentum as in PyTorch's SGD."""

    def step(mean: Array, kept: Kept) -> tuple[Array, Kept]:
        velocity = _velocity(mean, kept, momentum)
        return np.float32(rate) * (mean + np.float32(momentum) * velocity), {"velocity": velocity}

    return ServerOptimizer(step)


def _velocity(mean: Array, kept: Kept, momentum: float) -> Array:
    return np.float32(momentum) * kept["velocity"] + mean if kept else mean


def adam(rate: float, momentum: float, beta2: float, epsilon: float) -> ServerOptimizer:
    """Adam with bias correction."""
    first, second, one = np.float32(momentum), np.float32(beta2), np.float32(1)

    def step(mean: Array, kept: Kept) -> tuple[Array, Kept]:
        before = kept or {"m": np.zeros_like(mean), "v": np.zeros_like(mean), "t": np.zeros(1, np.float32)}
        m = first * before["m"] + (one - first) * mean
        v = second * before["v"] + (one - second) * mean * mean
        t = before["t"] + one
        rounds = int(t[0])
        unbiased = m / np.float32(1 - float(first) ** rounds)
        spread = np.sqrt(v / np.float32(1 - float(second) ** rounds))
        added = np.asarray(np.float32(rate) * unbiased / (spread + np.float32(epsilon)), np.float32)
        return added, {"m": m, "v": v, "t": t}

    return ServerOptimizer(step)


OPTIMIZERS: Mapping[ServerOptimizerName, Callable[..., ServerOptimizer]] = {
    "plain": plain,
    "momentum": heavy_ball,
    "nesterov": nesterov,
    "adam": adam,
}


def optimizer_of(settings: FederationSettings) -> ServerOptimizer:
    """The server optimizer that a recipe names."""
    return OPTIMIZERS[settings.server_optimizer](**settings.server_options)
