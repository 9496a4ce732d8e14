"""The trace of the kernel: exactly, with its shares, or estimated."""

import time
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pathex.errors import check_name
from pathex.graph import Tensors
from pathex.ntk.estimates import Operator, estimated
from pathex.ntk.kernel import PUSHED, Cost, products_bytes
from pathex.ntk.network import Network, Options, network_of

Method = Literal["exact", "hutchinson", "hutch++", "xtrace"]


@dataclass(frozen=True, eq=False)
class Trace:
    """The trace of a kernel; ``float()`` gives it.

    Attributes:
        value: The sum of squared derivatives over all images, all outputs and all kept parameters.
        standard_error: Of an estimate; 0 of an exact trace.
        by_parameter: Name of each parameter to its part, in the order of the network; empty for an estimate.
        by_class: The part of each output (of maps, of each channel) in float64; empty for an estimate.
        method: How it was computed.
        batch_norm: What BatchNorm used.
        cost: What it took.
    """

    value: float
    standard_error: float
    by_parameter: dict[str, float]
    by_class: Tensor
    method: Method
    batch_norm: str
    cost: Cost

    def __float__(self) -> float:
        return self.value


def trace(
    model: nn.Module,
    x: Any,
    mask: Tensors | None = None,
    method: Method = "exact",
    *,
    products: int = 120,
    seed: int = 0,
    **options: Unpack[Options],
) -> Trace:
    """The trace of the kernel, ``sum_n sum_k sum_j (df_k(x_n)/dtheta_j)^2`` over all parameters j that the mask keeps.

    Args:
        model: As for `pathex.ntk.kernel`.
        x: Images.
        mask: What is kept.
        method: ``exact``: a backward pass for each output of each image. ``hutchinson``, ``hutch++``, ``xtrace``:
            estimates by curvlinops from products with the kernel, which pay where there are many times more outputs
            than products (segmentation, 1000 classes, coupled batches).
        products: Products with the kernel that an estimate takes, at least 24, and fewer than images times outputs.
            Hutchinson's takes them one by one, the others in independent repetitions of twelve; the standard error
            follows from these, widened by Student's t: two of them are a 95 % interval.
        seed: Seed of an estimate.
        options: ``batch_norm``, ``output`` and ``memory``, see `pathex.ntk`.

    Returns:
        The trace.

    Example:
        >>> net = nn.Linear(2, 3, bias=False).eval()
        >>> float(trace(net, torch.tensor([[3.0, 4.0]])))  # of three outputs, each |x|^2
        75.0
    """
    check_name("method", method, get_args(Method))
    network = network_of(model, x, mask, options)
    started = time.perf_counter()
    if method == "exact":
        sums = torch.stack([_squares(network, part) for part in network.parts]).sum(0)
        by_parameter, by_class = dict(zip(network.leaves, sums.sum(1).tolist(), strict=True)), sums.sum(0)
        value, error = float(sums.sum()), 0.0
        passes, size = trace_passes(network), products_bytes(network) + network.memory // 4
    else:
        value, error = estimated(Operator(network), method, products, seed)
        by_parameter, by_class = {}, torch.empty(0, dtype=torch.float64)
        passes, size = products * (1 + PUSHED) * network.images, products_bytes(network)
    cost = Cost(passes, size, time.perf_counter() - started)
    return Trace(value, error, by_parameter, by_class, method, network.batch_norm, cost)


def trace_passes(network: Network) -> float:
    """Backward passes of one image that the exact trace takes."""
    return float(network.images * network.outputs * (network.images if network.coupled else 1))


def _squares(network: Network, part: Any) -> Tensor:
    """Squared derivatives of a part, summed in float64 by parameter and class."""
    found = []
    for rows in network.derivatives(part, list(network.leaves)):
        kept = [rows[n][:, network.places(n)] if n in network.mask else rows[n] for n in network.leaves]
        found.append(torch.stack([each.square().sum(1, dtype=torch.float64) for each in kept]).cpu())
    by_output = torch.cat(found, 1).view(len(network.leaves), -1, network.outputs).sum(1)
    return by_output.view(len(network.leaves), -1, prod(network.shape[1:])).sum(2)
