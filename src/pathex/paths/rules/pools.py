"""Pools, extremes over dimensions, and interpolation.

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
from pathex.paths.recording import ArgMax, Record, Slope
from pathex.paths.rules.smooth import scaled
from pathex.paths.weights import per_dimension

_MAX = tuple(f"max_pool{d}d{suffix}" for d in (1, 2, 3) for suffix in ("", "_with_indices"))
_ADAPTIVE_MAX = tuple(f"adaptive_max_pool{d}d" for d in (1, 2, 3))
_AVERAGE = tuple(f"avg_pool{d}d" for d in (1, 2, 3))
_ADAPTIVE_AVERAGE = tuple(f"adaptive_avg_pool{d}d" for d in (1, 2, 3))
_NEAREST = tuple(f"{prefix}{d}d" for prefix in ("upsample_nearest", "_upsample_nearest_exact") for d in (1, 2, 3))
_INTERPOLATIONS = (
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
)


def _rank(node: Node) -> int:
    """Number of dimensions that a pool acts on, as its name says."""
    return next(d for d in (1, 2, 3) if f"pool{d}d" in node.op)


# -- max pools ---------------------------------------------------------------------------------------------------------


def _window(node: Node) -> tuple[Any, ...]:
    kernel = node["kernel_size"]
    return kernel, node["stride"] or kernel, node["padding"], node["dilation"], node["ceil_mode"]


def _max_pooled(node: Node, x: Tensor, **how: bool) -> Any:
    pool = getattr(F, node.op.removesuffix("_with_indices"))
    return pool(x, *_window(node), **how) if node.op in _MAX else pool(x, node["output_size"], **how)


@recording.rule(*_MAX, *_ADAPTIVE_MAX)
def _max_pool(reading: Record, node: Node) -> Any:
    result, indices = _max_pooled(node, reading(node.args[0]), return_indices=True)
    reading.keep(node, ArgMax(indices))
    return result if node.shape is not None else (result, indices)


@rule(*_MAX, *_ADAPTIVE_MAX)
def _max_pool_linear(reading: Linear, node: Node) -> Any:
    if node.shape is None and any(user.args[1] != 0 for user in reading.graph.users[node]):
        raise reading.unsupported(node, "its indices are used by the network")
    x: Tensor = reading(node.args[0])
    rank = _rank(node)
    if reading.tape is not None:
        indices = reading.tape[node].indices
        result = x.flatten(-rank).gather(-1, indices.flatten(-rank)).view(indices.shape)
    elif reading.pools == "max":
        result = _max_pooled(node, x)
    elif node.op in _MAX:
        result = _window_sum(x, rank, *_window(node))
    else:
        result = _apply(x, [m.ne(0).to(m) for m in _adaptive_matrices(x, node["output_size"], rank)])
    return result if node.shape is not None else (result,)


def _window_sum(x: Tensor, rank: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
    """Sum over each window of a max pool: a convolution with ones, padded as far as ceil mode reaches."""
    sizes = x.shape[-rank:]
    kernel, stride, padding, dilation = (per_dimension(value, rank) for value in (kernel, stride, padding, dilation))
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
    rank, divisor = _rank(node), node.arguments.get("divisor_override")
    kernel = node["kernel_size"]
    window = [per_dimension(value, rank) for value in (kernel, node["stride"] or kernel, node["padding"])]
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
    if rank == 1:  # which alone cannot be told the divisor
        x, kernel, stride, padding = x.unsqueeze(-2), [1, *kernel], [1, *stride], [0, *padding]
    pool: Callable[..., Tensor] = F.avg_pool3d if rank == 3 else F.avg_pool2d
    result = pool(x, kernel, stride, padding, ceil_mode, include_pad, divisor)
    return result.squeeze(-2) if rank == 1 else result


def _adaptive_matrices(x: Tensor, output_size: Any, rank: int) -> list[Tensor]:
    """For each spatial dimension the matrix ``(out, in)`` of an adaptive average pool."""
    outputs = per_dimension(output_size, rank)
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
        return reading.plain(node)
    rank = _rank(node)
    if all(size == 1 for size in per_dimension(node["output_size"], rank)):
        spatial = tuple(range(-rank, 0))
        return x.mean(spatial, keepdim=True) / x[(0,) * (x.dim() - rank)].numel()
    return _apply(x, [matrix.square() for matrix in _adaptive_matrices(x, node["output_size"], rank)])


@rule("mean")
def _mean(reading: Linear, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    result: Tensor = reading.plain(node)
    return result * (result.numel() / x.numel()) if reading.coefficients == "squared" else result


# -- interpolation -----------------------------------------------------------------------------------------------------


rule(*_NEAREST)(Linear.plain)


@rule(*_INTERPOLATIONS)
def _interpolate(reading: Linear, node: Node) -> Tensor:
    if reading.coefficients == "plain":
        return reading.plain(node)
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


def _dims(node: Node, x: Tensor) -> tuple[int, ...]:
    dim = node.arguments.get("dim")
    return (dim,) if isinstance(dim, int) else tuple(dim or range(x.dim()))


@recording.rule("amax", "amin")
def _extreme(reading: Record, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    largest = (torch.amax if node.op == "amax" else torch.amin)(x, _dims(node, x), keepdim=True)
    reached = (x == largest).to(x.dtype)
    reading.keep(node, Slope(reached / reached.sum(_dims(node, x), keepdim=True)))
    return reading.plain(node)


@rule("amax", "amin")
def _extreme_linear(reading: Linear, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    routed = x if reading.opened else scaled(reading, node, x)
    return routed.sum(_dims(node, x), keepdim=node["keepdim"])
