"""Who is asked in a round, and how much each weighs."""

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from silotune.data.seeds import derive
from silotune.settings import FederationSettings
from silotune.wire.profile import Profile


def choose_cohort(names: list[str], share: float, minimum: int, seed: int, round_: int) -> list[str]:
    """Draw a round's cohort from the silos that are here: a function of the seed, the round and the names.

    Args:
        names: of the silos that are here.
        share: to ask, in (0, 1].
        minimum: to ask at least.
        seed: of the run.
        round_: from 1.

    Returns:
        Names, sorted.
    """
    count = min(len(names), max(minimum, math.ceil(share * len(names) - 1e-9)))
    drawn = np.random.default_rng(derive(seed, "cohort", round_)).choice(sorted(names), size=count, replace=False)
    return sorted(str(name) for name in drawn)


MOST_OF_TWO = Fraction(99, 100)
"""Share that one of two silos may have: beyond it the other's update would be rounded to nothing."""


def bounded(weights: Mapping[str, int], most: float) -> dict[str, int]:
    """Weights of which none is more than a share of the sum of those that are asked; of two, `MOST_OF_TWO`.

    What is beyond it is clipped to the largest weight that keeps to the share: silos declare their own counts.
    """
    if len(weights) < 2:
        return dict(weights)
    ordered, bound = sorted(weights.values(), reverse=True), 0
    share = Fraction(str(most)) if len(weights) > 2 else MOST_OF_TWO
    for clipped, largest in enumerate(ordered):
        if share * clipped >= 1:
            break
        # With the largest clipped to c: c = share (clipped c + the sum of the others).
        bound = math.floor(share * sum(ordered[clipped:]) / (1 - share * clipped))
        if largest <= bound:
            return {name: min(weight, bound) for name, weight in weights.items()}
    return dict.fromkeys(weights, ordered[-1])  # no weights keep to a share below an equal one


def weight_of(profile: Profile, settings: FederationSettings) -> int:
    """What a silo weighs in the mean by what it declared."""
    return {"examples": profile.train_rows, "tokens": profile.train_loss_tokens, "uniform": 1}[settings.weights]
