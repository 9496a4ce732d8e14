"""Pools and interpolation.

Max pools route through the recorded arg max (open: the sum, or the maximum, over the window). Average pools and
interpolation are fixed linear maps; a squared reading squares each of their coefficients.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.graph import Node
from pathex.paths import recording
from pathex.paths.linear import Linear, rule
from pathex.paths.recording import ArgMax, Record

_MAX = {f"max_pool{d}d": d for d in (1, 2, 3)} | {f"max_pool{d}d_with_indices": d for d in (1, 2, 3)}
_ADAPTIVE_MAX = {f"adaptive_max_pool{d}d": d for d in (1, 2, 3)}
_AVERAGE = {f"avg_pool{d}d": d for d in (1, 2, 3)}
_ADAPTIVE_AVERAGE = {f"adaptive_avg_pool{d}d": d for d in (1, 2, 3)}
_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_ADAPTIVE_POOLS = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
_NEAREST = tuple(f"{prefix}{d}d" for prefix in ("upsample_nearest", "_upsample_nearest_exact") for d in (1, 2, 3))
_INTERPOLATIONS = (
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
)


def _all_of(value: Any, rank: int) -> list[int]:
    values = [value] * rank if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


# -- max pools ---------------------------------------------------------------------------------------------------------


def _window(node: Node) -> tuple[Any, ...]:
    kernel = node["kernel_size"]
    return kernel, node["stride"] or kernel, node["padding"], node["dilation"], node["ceil_mode"]


@recording.rule(*_MAX, *_ADAPTIVE_MAX)
def _max_pool(reading: Record, node: Node) -> Any:
    x: Tensor = reading(node.args[0])
    if node.op in _MAX:
        result, indices = _POOLS[_MAX[node.op]](x, *_window(node), return_indices=True)
    else:
        result, indices = _ADAPTIVE_POOLS[_ADAPTIVE_MAX[node.op]](x, node["output_size"], return_indices=True)
    reading.keep(node, ArgMax(indices))
    return result if node.shape is not None else (result, indices)


@rule(*_MAX, *_ADAPTIVE_MAX)
def _max_pool_linear(reading: Linear, node: Node) -> Any:
    if node.shape is None and any(user.args[1] != 0 for user in reading.graph.users[node]):
        raise reading.unsupported(node, "its indices are used by the network")
    x: Tensor = reading(node.args[0])
    rank = (_MAX | _ADAPTIVE_MAX)[node.op]
    if reading.tape is not None:
        indices = reading.tape[node].indices
        result = x.flatten(-rank).gather(-1, indices.flatten(-rank)).view(indices.shape)
    elif node.op in _MAX:
        result = _POOLS[rank](x, *_window(node)) if reading.pools == "max" else _window_sum(x, rank, *_window(node))
    elif reading.pools == "max":
        result = _ADAPTIVE_POOLS[rank](x, node["output_size"])
    else:
        result = _apply(x, [m.ne(0).to(m) for m in _adaptive_matrices(x, node["output_size"], rank)])
    return result if node.shape is not None else (result,)


def _window_sum(x: Tensor, rank: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
    """Sum over each window of a max pool: a convolution with ones, padded as far as ceil mode reaches."""
    sizes = x.shape[-rank:]
    kernel, stride, padding, dilation = (_all_of(value, rank) for value in (kernel, stride, padding, dilation))
    pads: list[int] = []
    for size, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        reach = d * (k - 1) + 1
        steps = (size + 2 * p - reach + (s - 1 if ceil_mode else 0)) // s
        if ceil_mode and steps * s >= size + p:
            steps -= 1
        pads = [p, max(0, steps * s + reach - size - p), *pads]
    padded = F.pad(x, pads).reshape(-1, 1, *(n + pads[-2 * i - 2] + pads[-2 * i - 1] for i, n in enumerate(sizes)))
    ones = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    conv: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    summed = conv(padded, ones, stride=stride, dilation=dilation)
    return summed.view(*x.shape[:-rank], *summed.shape[2:])


# -- average pools -----------------------------------------------------------------------------------------------------


@rule(*_AVERAGE)
def _average_pool_linear(reading: Linear, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    rank, divisor = _AVERAGE[node.op], node.arguments.get("divisor_override")
    kernel = node["kernel_size"]
    window = [_all_of(value, rank) for value in (kernel, node["stride"] or kernel, node["padding"])]
    how = (node["ceil_mode"], node["count_include_pad"])
    mean = _average(x, rank, window, *how, divisor)
    if reading.coefficients != "squared":
        return mean
    # The coefficient is the same over a window: its mean of ones over its sum of ones.
    ones = torch.ones(1, 1, *x.shape[-rank:], dtype=x.dtype, device=x.device)
    coefficient = _average(ones, rank, window, *how, divisor)
    return mean * (coefficient / _average(ones, rank, window, *how, 1)).reshape(coefficient.shape[2:])


def _average(
    x: Tensor, rank: int, window: Sequence[list[int]], ceil_mode: bool, include_pad: bool, divisor: int | None
) -> Tensor:
    kernel, stride, padding = window
    if rank == 3:
        return F.avg_pool3d(x, kernel, stride, padding, ceil_mode, include_pad, divisor)
    if rank == 2:
        return F.avg_pool2d(x, kernel, stride, padding, ceil_mode, include_pad, divisor)
    flat = F.avg_pool2d(x.unsqueeze(-2), [1, *kernel], [1, *stride], [0, *padding], ceil_mode, include_pad, divisor)
    return flat.squeeze(-2)


def _adaptive_matrices(x: Tensor, output_size: Any, rank: int) -> list[Tensor]:
    """For each spatial dimension the matrix ``(out, in)`` of an adaptive average pool."""
    outputs = _all_of(output_size, rank)
    eyes = (torch.eye(n, dtype=x.dtype, device=x.device) for n in x.shape[-rank:])
    return [F.adaptive_avg_pool1d(eye.unsqueeze(0), out).squeeze(0).T for eye, out in zip(eyes, outputs, strict=True)]


def _apply(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply one matrix to each of the last dimensions."""
    for i, matrix in enumerate(matrices):
        dim = i - len(matrices)
        x = (x.movedim(dim, -1) @ matrix.T).movedim(-1, dim)
    return x


@rule(*_ADAPTIVE_AVERAGE)
def _adaptive_average_linear(reading: Linear, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    if reading.coefficients != "squared":
        pooled: Tensor = reading.plain(node)
        return pooled
    rank = _ADAPTIVE_AVERAGE[node.op]
    if all(size == 1 for size in _all_of(node["output_size"], rank)):
        spatial = tuple(range(-rank, 0))
        return x.mean(spatial, keepdim=True) / x[(0,) * (x.dim() - rank)].numel()
    return _apply(x, [matrix.square() for matrix in _adaptive_matrices(x, node["output_size"], rank)])


@rule("mean")
def _mean(reading: Linear, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    result: Tensor = reading.plain(node)
    return result * (result.numel() / x.numel()) if reading.coefficients == "squared" else result


# -- interpolation -----------------------------------------------------------------------------------------------------


@rule(*_NEAREST)
def _nearest(reading: Linear, node: Node) -> Tensor:
    result: Tensor = reading.plain(node)
    return result


@rule(*_INTERPOLATIONS)
def _interpolate(reading: Linear, node: Node) -> Tensor:
    if reading.coefficients == "plain":
        plain: Tensor = reading.plain(node)
        return plain
    x: Tensor = reading(node.args[0])
    rank = x.dim() - 2
    sizes, factors = reading(node.arguments.get("output_size")), reading(node.arguments.get("scale_factors"))
    options: dict[str, Any] = {"align_corners": node["align_corners"], "antialias": node.op.endswith("_aa")}
    mode = "bicubic" if "bicubic" in node.op else "bilinear"
    matrices = []
    for place, n in enumerate(x.shape[-rank:]):
        # Every mode is separable; a 2-d map of height 1 gives the matrix of one dimension.
        eye = torch.eye(n, dtype=x.dtype, device=x.device)[:, None, None, :]
        target = (1, sizes[place]) if sizes else None
        row = F.interpolate(eye, target, None if target else (1.0, float(factors[place])), mode, **options)
        matrices.append(reading.coefficient(row[:, 0, 0, :].T))
    return _apply(x, matrices)
