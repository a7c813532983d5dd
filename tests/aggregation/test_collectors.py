"""The collector's door bears a sum that the server cannot see into: four stages, masked integers, one silo that drops out.

A toy of three silos after Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS
2017: pairs of silos agree on masks that cancel in the sum, and a silo that has dropped out is unmasked by the others. Its
numbers protect nothing (a small prime, keys shown to whoever asks); it shows that nothing outside the collector changes.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from silotune.aggregation.interface import Aggregate, Ask, Cohort, Contribution, Round, collect
from silotune.model.adapter import AdapterSpec, flatten, initial_adapter, unflatten

SPEC = AdapterSpec.of({"m.lora_A.weight": (2, 9), "m.lora_B.weight": (7, 2)})
B = SPEC.only(SPEC.with_role("B"))
SILOS = ("ash", "birch", "cedar")
PRIME, BASE = 2_147_483_647, 7
STEP = 2.0**-20
"""Of the fixed point; sums are taken modulo 2^32."""


def masked_sum(round_: Round) -> Iterator:
    """Keys, shares of each other's keys, masked updates, and the masks of who dropped out in between."""
    silos = sorted(round_.cohort.weights)
    keys = {c.silo: c.update["key"] for c in (yield Ask("keys", {silo: {} for silo in silos}))}
    everybody = {f"key/{silo}": key for silo, key in keys.items()}
    shared = {c.silo for c in (yield Ask("share", dict.fromkeys(keys, everybody)))}
    total, arrived = np.zeros(B.size, np.uint32), []
    for contribution in (yield Ask("masked", {silo: {} for silo in shared})):
        total += contribution.update["sum"]
        arrived.append(contribution.silo)
    gone = {f"gone/{silo}": np.zeros(0) for silo in shared - set(arrived)}
    for contribution in (yield Ask("unmask", dict.fromkeys(arrived, gone))):
        total -= contribution.update["mask"]
    if not arrived:
        return None
    mean = total.astype(np.int32) * STEP / len(arrived)
    return Aggregate(unflatten(mean.astype(np.float32), B), None, tuple(sorted(arrived)))


class Silo:
    """A silo's side: it keeps its update and its secret to itself."""

    def __init__(self, name: str, update: np.ndarray, drops_out: bool) -> None:
        self.name, self.drops_out = name, drops_out
        self.secret = 1000 + SILOS.index(name)
        self.update = np.round(update / STEP).astype(np.int64).astype(np.uint32)
        self.keys = {}

    def answer(self, ask: Ask) -> dict | None:
        told = ask.requests[self.name]
        if ask.stage == "keys":
            return {"key": np.array([pow(BASE, self.secret, PRIME)])}
        if ask.stage == "share":
            self.keys = {name.removeprefix("key/"): int(key[0]) for name, key in told.items()}
            return {}
        if ask.stage == "masked":
            others = [other for other in self.keys if other != self.name]
            return None if self.drops_out else {"sum": self.update + sum(map(self.mask, others), np.uint32(0))}
        gone = [name.removeprefix("gone/") for name in told]
        return {"mask": sum(map(self.mask, gone), np.zeros(B.size, np.uint32))}

    def mask(self, other: str) -> np.ndarray:
        """That this silo and another agree on; one of them adds it, the other takes it away."""
        seed = pow(self.keys[other], self.secret, PRIME)
        drawn = np.random.default_rng(seed).integers(0, 1 << 32, B.size, dtype=np.uint32)
        return drawn if self.name < other else np.uint32(0) - drawn


@pytest.mark.parametrize("gone", [(), ("birch",)])
def test_a_collector_of_four_stages_sees_sums_alone(gone):
    updates = {name: np.random.default_rng(number).normal(0, 0.1, B.size) for number, name in enumerate(SILOS)}
    silos = {name: Silo(name, updates[name], name in gone) for name in SILOS}
    stages, seen = [], []

    def ask(wanted: Ask) -> Iterator[Contribution]:
        stages.append(wanted.stage)
        for name in wanted.requests:
            answer = silos[name].answer(wanted)
            if answer is not None:
                seen.extend(answer.values())
                yield Contribution(name, answer, 1)

    round_ = Round(initial_adapter(SPEC, 0), B.names, Cohort(dict.fromkeys(SILOS, 1)))
    found = collect(masked_sum, round_, ask)
    here = [name for name in SILOS if name not in gone]
    assert stages == ["keys", "share", "masked", "unmask"] and found.silos == tuple(here)
    expected = np.mean([updates[name] for name in here], axis=0)
    assert np.abs(flatten(found.update) - expected).max() < STEP
    for name in here:  # no silo's own numbers were in any answer
        assert not any(array.shape == (B.size,) and (array == silos[name].update).mean() > 0.1 for array in seen)
