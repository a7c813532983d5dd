"""FedAvg on LoRA factors: both are trained every round, and averaged apart.

Brendan McMahan, Eider Moore, Daniel Ramage, Seth Hampson, Blaise Agüera y Arcas, "Communication-Efficient Learning
of Deep Networks from Decentralized Data", AISTATS 2017, arXiv 1602.05629; on LoRA factors: Jianyi Zhang et al.,
"Towards Building the Federated GPT: Federated Instruction Tuning", ICASSP 2024, arXiv 2305.05644.

Guarantee. With weights w_k that sum to 1 over the silos that arrived and the plain server optimizer at rate eta,
    A+ = A_0 + eta sum_k w_k (A_k - A_0),   B+ = B_0 + eta sum_k w_k (B_k - B_0)
but for rounding, and to the same bits in any order of arrival. One silo and eta = 1 give that silo's own adapter; one
step of SGD at each silo gives one step of SGD on sum_k w_k L_k. It is not the mean of the products B_k A_k: what is
left out, sum_k w_k (B_k - Bbar)(A_k - Abar), is reported each round as `e_agg`.
"""

from silotune.algorithms.interface import Method
from silotune.model.adapter import AdapterSpec, initial_adapter


def trainable(spec: AdapterSpec, round_: int) -> frozenset[str]:
    """Everything, whatever the round."""
    del round_
    return spec.names


METHOD = Method("fedavg", initial_adapter, trainable)
