"""SCAFFOLD: FedAvg whose silos' steps are corrected by how their own way differs from everybody's.

Sai Praneeth Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, arXiv
1910.06378 (option II), with the correction after the optimizer's step: a term in the gradient would be divided by
Adam's root of second moments. With control variates c_k of silo k and c of the server, all 0 at first, and rates eta_h:

    each step    theta -= eta_h d_h,  d_h = AdamW's direction;  then  theta -= eta_h (c - c_k)
    silo         c_k+ = c_k - c + (theta_t - theta_k) / sum_h eta_h,  the mean direction d of its steps
    server       c += (weight that arrived / weight of all) * mean_k(c_k+ - c_k)

The mean is the round's own, by the silos' weights. A silo sends its update and c_k+ - c_k, the server its adapter and
c: twice FedAvg's bytes both ways. c_k never leaves the silo's memory.

Guarantee. If all silos arrive in every round, c = sum_k w_k c_k but for rounding, and the corrections of a round cancel
in its mean. Silos with the same rows, seeds and weights have c_k = c: then SCAFFOLD is FedAvg. So is its first round,
and a federation of one silo.
"""

import numpy as np

from silotune.algorithms.fedavg import trainable
from silotune.algorithms.interface import Arrays, Control, LocalResult, Method
from silotune.model.adapter import AdapterSpec, AdapterState, initial_adapter

PREFIX = "control/"
"""Before the name of the tensor that a control variate is of."""


def variates(spec: AdapterSpec) -> AdapterSpec:
    """One per tensor of the adapter, of its shape."""
    return AdapterSpec(tuple((PREFIX + name, shape) for name, shape in spec.shapes))


def drift(common: Arrays, own: Arrays) -> AdapterState:
    """c - c_k, by the names of the adapter's tensors."""
    return {name.removeprefix(PREFIX): value - own[name] if name in own else value for name, value in common.items()}


def change(result: LocalResult) -> Arrays:
    """c_k+ - c_k; 0 of a silo whose rates were all 0, for it has not moved."""
    if result.rates == 0:
        return {name: np.zeros_like(value) for name, value in result.common.items()}
    rates = np.float32(result.rates)
    return {name: -value - result.update[name.removeprefix(PREFIX)] / rates for name, value in result.common.items()}


MOST = 8.0
"""AdamW's direction is at most (1 - beta_1) / sqrt(1 - beta_2) = 3.2 with its defaults, and weight decay adds its rate
times a weight."""

METHOD = Method("scaffold", initial_adapter, trainable, control=Control(variates, drift, change, MOST))
