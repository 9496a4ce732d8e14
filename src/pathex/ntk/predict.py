"""What a kernel or a trace will cost."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from math import ceil
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pathex.errors import check_name
from pathex.graph import Tensors
from pathex.ntk.exact import EQUATIONS, GROUP, Form, blocks, rows_of
from pathex.ntk.kernel import Cost, Exact, planned
from pathex.ntk.network import Network, Options, network_of
from pathex.ntk.trace import squares, trace_cost

T = TypeVar("T")


def predict(
    model: nn.Module,
    x: Any,
    mask: Tensors | None = None,
    method: Exact | Literal["exact"] = "auto",
    *,
    form: Form = "full",
    **options: Unpack[Options],
) -> Cost:
    """What `pathex.ntk.kernel`, or with ``method="exact"`` `pathex.ntk.trace`, will cost with these arguments.

    Seconds are those of a small piece of the same work, times the number of such pieces: the rows of one image by each
    block of parameters and one product of them, or one column.

    Returns:
        The cost.
    """
    network = network_of(model, x, mask, options)
    rows = network.images * network.outputs
    if method == "exact":
        passes, size = trace_cost(network)
        return Cost(passes, size, _of_rows(network, partial(squares, network, network.parts[0])))
    check_name("method", method, get_args(Exact))
    check_name("form", form, EQUATIONS)
    chosen, passes, size = planned(network, form, method)
    if chosen == "products":
        part = network.parts[0]
        picked = torch.zeros(len(part), network.outputs)
        return Cost(passes, size, rows * _timed(lambda: network.pushed(network.pulled(picked, part)))[0])
    seconds = 0.0
    for block in blocks(network):
        seconds += _of_rows(network, partial(rows_of, network, block, network.parts[0]))
        seconds += _of_products(network, form, sum(len(places) for _, places in block))
    return Cost(passes, size, seconds)


def _of_rows(network: Network, some: Callable[[], Iterator[Tensor]]) -> float:
    """Seconds of all rows, from those of one image, or of a few where images are coupled."""
    seconds, seen = _timed(lambda: sum(len(rows) for rows in islice(some(), 2 if network.coupled else None)))
    return seconds * network.images * network.outputs / seen


def _of_products(network: Network, form: Form, width: int) -> float:
    """Seconds of the products of all rows of a width, from those of a part of them."""
    group = min(ceil(GROUP / network.outputs), network.images)
    part = min(width, max(1, network.memory // 8 // (network.images * network.outputs * network.dtype.itemsize)), 2**14)
    rows = torch.ones(network.images, network.outputs, part, dtype=network.dtype, device=network.x.device)
    right = rows[:group] if form == "blocks" else rows
    one, _ = _timed(lambda: torch.einsum(EQUATIONS[form], rows[:group], right))
    below = 1 if form == "blocks" else (1 + group / network.images) / 2
    return one * below * network.images / group * width / part


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of a piece of work, which is done twice as the first time is slower, and what it gives."""
    work()
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result
