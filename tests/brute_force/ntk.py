"""The NTK trace from its definition, and its mean over every sign pattern of the weights with gates held fixed."""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brute_force.cases import masked, prunable

Network = Callable[[dict[str, Tensor]], Tensor]


def trace(model: nn.Module, x: Tensor, mask: dict[str, Tensor] | None = None) -> Tensor:
    """Sum over images, outputs and prunable weights kept of the squared derivative, in evaluation mode."""
    theta = masked(model.eval(), mask)
    weights = {name: theta[name] for name in prunable(model)}
    keep = {name: torch.ones_like(entry) for name, entry in weights.items()} | (mask or {})
    jacobian = torch.func.jacrev(lambda entries: torch.func.functional_call(model, theta | entries, (x,)))(weights)
    return torch.stack([((entry * keep[name]) ** 2).sum() for name, entry in jacobian.items()]).sum()


def mean_trace_over_signs(network: Network, weights: dict[str, Tensor]) -> Tensor:
    """Mean of the trace of ``network`` (weights to outputs) over all 2 ** W choices of the signs of W weights."""
    total = sum(entry.numel() for entry in weights.values())
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=total)), dtype=torch.float64)
    columns = signs.split([entry.numel() for entry in weights.values()], dim=1)
    patterns = {
        name: column.reshape(-1, *weights[name].shape) * weights[name]
        for name, column in zip(weights, columns, strict=True)
    }
    jacobian = torch.func.vmap(torch.func.jacrev(network))(patterns)
    return torch.stack([(entry**2).sum() for entry in jacobian.values()]).sum() / len(signs)


def _dense(model: nn.Sequential, x: Tensor) -> Network:
    """Linear, ReLU, linear, ReLU, linear: the gates are those of the present weights."""
    first = model[0](x)
    gates = (first > 0).double(), (model[2](first.relu()) > 0).double()

    def network(weights: dict[str, Tensor]) -> Tensor:
        hidden = gates[1] * F.linear(gates[0] * F.linear(x, weights["0.weight"]), weights["2.weight"])
        return F.linear(hidden, weights["4.weight"])

    return network


def _convolutional(model: nn.Sequential, x: Tensor) -> Network:
    """Convolution, ReLU, convolution, ReLU, anything without weights (module 4), flatten, linear."""
    first = model[0](x)
    gates = (first > 0).double(), (model[2](first.relu()) > 0).double()

    def network(weights: dict[str, Tensor]) -> Tensor:
        hidden = gates[1] * F.conv2d(gates[0] * F.conv2d(x, weights["0.weight"]), weights["2.weight"])
        return F.linear(model[4](hidden).flatten(1), weights["6.weight"])

    return network


FIXED_GATES: dict[str, Callable[[nn.Sequential, Tensor], Network]] = {"dense": _dense, "conv": _convolutional}
