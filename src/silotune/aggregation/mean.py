"""The weighted mean of a round's updates, tensor by tensor.

Guarantee. With weights w_k that sum to 1 over the silos that arrived, the update of each tensor is sum_k w_k U_k: each
U_k rounded to multiples of 2^-45, the mean once to float32; the same bits in any order of arrival, with one accumulator
whatever the number of silos.

| case                          | result                                      |
| ----------------------------- | ------------------------------------------- |
| no update arrives             | None; the server decides what that means    |
| all updates are zero          | zeros; e_agg 0                              |
| a number not finite           | ValueError; admission has refused it before |
| runaway factors, large cohort | e_agg is None: not known                    |
| adapters with magnitudes      | e_agg is None: not known                    |
"""

from collections.abc import Generator, Iterable, Iterator

from silotune.aggregation.error import ErrorMeter
from silotune.aggregation.interface import Aggregate, Ask, Contribution, Round
from silotune.aggregation.summation import ExactMean
from silotune.model.adapter import unflatten


def plain(round_: Round) -> Generator[Ask, Iterator[Contribution], Aggregate | None]:
    """Ask once, and average what arrives as it arrives."""
    return averaged(round_, (yield Ask("train")))


def averaged(round_: Round, contributions: Iterable[Contribution]) -> Aggregate | None:
    """The weighted mean of updates, summed as they arrive; None if none arrives."""
    spec = round_.payload
    mean, error = ExactMean(spec.size, round_.cohort.total), ErrorMeter(round_)
    silos = []
    for contribution in contributions:
        mean.add_parts([contribution.update[name] for name, _ in spec.shapes], contribution.weight)
        error.add(contribution)
        silos.append(contribution.silo)
        del contribution  # while the next one is waited for
    if not silos:
        return None
    update = unflatten(mean.mean(), spec)
    return Aggregate(update, error.value(update), tuple(sorted(silos)))
