"""FedAvg on LoRA factors: A and B are averaged apart.

Brendan McMahan, Eider Moore, Daniel Ramage, Seth Hampson, Blaise Agüera y Arcas, "Communication-Efficient Learning
of Deep Networks from Decentralized Data", AISTATS 2017, arXiv 1602.05629; on LoRA factors: Jianyi Zhang et al.,
"Towards Building the Federated GPT: Federated Instruction Tuning", ICASSP 2024, arXiv 2305.05644.

Guarantee. With weights w_k that sum to 1 over the silos that arrived and server rate eta,
    A+ = A_0 + eta sum_k w_k (A_k - A_0),   B+ = B_0 + eta sum_k w_k (B_k - B_0),
each rounded once to float32, the same bits in any order of arrival. One silo and eta = 1 give that silo's own
adapter; one step of SGD at each silo gives one step of SGD on sum_k w_k L_k. It is not the mean of the products
B_k A_k: what is left out, sum_k w_k (B_k - Bbar)(A_k - Abar), is reported each round as `e_agg`.

| case                          | result                                    |
| ----------------------------- | ----------------------------------------- |
| no update arrives             | None; the server decides what that means  |
| all updates are zero          | the adapter stays as it is; e_agg 0       |
| a number not finite           | ValueError; admission has refused it before |
| runaway factors, large cohort | e_agg is None: not known                  |
"""

from collections.abc import Iterable

import numpy as np

from silotune.algorithms.error import ErrorMeter
from silotune.algorithms.interface import Aggregate, Algorithm, Cohort, Contribution, ServerState
from silotune.algorithms.summation import ExactMean
from silotune.model.adapter import AdapterSpec, AdapterState, unflatten
from silotune.settings import FederationSettings


def init(adapter: AdapterState) -> ServerState:
    """Start from an adapter that changes nothing."""
    return ServerState(0, adapter)


def client(received: AdapterState, trained: AdapterState) -> dict[str, "np.typing.NDArray[np.float32]"]:
    """The update: what local training changed, in float32."""
    return {name: trained[name] - received[name] for name in received}


def aggregate(state: ServerState, cohort: Cohort, contributions: Iterable[Contribution]) -> Aggregate | None:
    """Weighted mean of the updates, summed as they arrive."""
    spec = AdapterSpec.of(state.adapter)
    mean, error = ExactMean(spec.size, cohort.total), ErrorMeter(state.adapter, cohort)
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


def apply(state: ServerState, aggregate: Aggregate, settings: FederationSettings) -> ServerState:
    """Add the mean update, times the server rate."""
    rate = np.float32(settings.server_rate)
    adapter = {name: value + rate * aggregate.update[name] for name, value in state.adapter.items()}
    return ServerState(state.round + 1, adapter, state.extra)


ALGORITHM = Algorithm("fedavg", init, client, aggregate, apply)
