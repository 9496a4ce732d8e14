"""The trace of the kernel: exactly, with its shares, or estimated."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pathex.errors import check_name
from pathex.graph import Images, Tensors
from pathex.ntk.estimates import Operator, estimated
from pathex.ntk.kernel import PUSHED, Cost, products_bytes
from pathex.ntk.network import Network, Options, network_of

if TYPE_CHECKING:
    from altair import LayerChart

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

    def plot(self) -> "LayerChart":
        """The part of each parameter in the order of the network; of an estimate its interval."""
        import pandas as pd

        from pathex.figures import dots, heat_map

        title = "squared derivatives, summed"
        if self.by_parameter:
            rows = [("trace", name, part) for name, part in self.by_parameter.items()]
            return heat_map(
                pd.DataFrame(rows, columns=["row", "parameter", "value"]), "parameter", "row", label=title, log=True
            )
        low, high = (self.value + sign * 2 * self.standard_error for sign in (-1, 1))
        table = pd.DataFrame({"series": ["trace"], "mean": [self.value], "low": [low], "high": [high]})
        return dots(table, x_title=title, number=".3~g")


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
        rows = torch.cat([rows for part in network.parts for rows in squares(network, part)])
        by_parameter = dict(zip(network.leaves, rows.sum(0).tolist(), strict=True))
        by_class = rows.sum(1).view(network.images, -1, prod(network.shape[1:])).sum((0, 2))
        value, error, (passes, size) = float(rows.sum()), 0.0, trace_cost(network)
    else:
        value, error = estimated(Operator(network), method, products, seed)
        by_parameter, by_class = {}, torch.empty(0, dtype=torch.float64)
        passes, size = products * (1 + PUSHED) * network.images, products_bytes(network)
    cost = Cost(passes, size, time.perf_counter() - started)
    return Trace(value, error, by_parameter, by_class, method, network.batch_norm, cost)


def trace_cost(network: Network) -> tuple[float, int]:
    """Passes and bytes of the exact trace."""
    passes = network.images * network.outputs * (network.images if network.coupled else 1)
    return float(passes), network.rows_bytes()


def squares(network: Network, part: Images) -> Iterator[Tensor]:
    """Squared derivatives by each parameter, summed in float64, some rows at a time: ``(rows, parameters)``."""
    for rows in network.derivatives(part, list(network.leaves)):
        kept = [rows[name] * network.mask[name].flatten() if name in network.mask else rows[name] for name in rows]
        yield torch.stack([each.square().sum(1, dtype=torch.float64) for each in kept], 1).cpu()
