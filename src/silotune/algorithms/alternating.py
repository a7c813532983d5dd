"""RoLoRA: B is trained in odd rounds, A in even ones, and the other factor stays as it is.

Shuangyi Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA", NeurIPS 2025,
arXiv 2502.01755.

Guarantee. In a round all silos share the factor that is not trained, so averaging is exact:
sum_k w_k B_k A = (sum_k w_k B_k) A in odd rounds, sum_k w_k B A_k = B (sum_k w_k A_k) in even ones, and e_agg is 0 but
for rounding. A silo sends about half as much as with FedAvg: the factor that was trained. The server sends both, as a
silo may have missed a round. A server optimizer's slots of the factor that is not trained stay untouched.

The first round must be B's: where B is 0, the gradient of A is 0.
"""

from silotune.algorithms.interface import Method
from silotune.model.adapter import AdapterSpec, initial_adapter


def trainable(spec: AdapterSpec, round_: int) -> frozenset[str]:
    """B in odd rounds, A in even ones."""
    return spec.with_role("B" if round_ % 2 else "A")


METHOD = Method("alternating", initial_adapter, trainable)
