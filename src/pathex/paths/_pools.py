"""Pools and interpolation.

Max pools route through the recorded arg max (open: the sum, or the maximum, over the window). Average pools and
interpolation are fixed linear maps; a squared reading squares each of their coefficients.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.paths._reading import spellings
from pathex.paths._readings import RECORD, REPLAY, ArgMax, Record, Replay

__all__: list[str] = []

_MAX = {f: d for d in (1, 2, 3) for f in spellings(f"max_pool{d}d", f"max_pool{d}d_with_indices")}
# Only those of torch.nn.functional: torch's own return the indices too.
_ADAPTIVE_MAX = {getattr(F, f"adaptive_max_pool{d}d{suffix}"): d for d in (1, 2, 3) for suffix in ("", "_with_indices")}
_AVERAGE = {f: d for d in (1, 2, 3) for f in spellings(f"avg_pool{d}d")}
_ADAPTIVE_AVERAGE = {f: d for d in (1, 2, 3) for f in spellings(f"adaptive_avg_pool{d}d")}
_MAX_BY_RANK = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_ADAPTIVE_MAX_BY_RANK = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


def _all_of(value: Any, rank: int) -> list[int]:
    values = [value] * rank if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


# -- max pools ---------------------------------------------------------------------------------------------------------


def _pool_arguments(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Any, Any, Any, Any, bool, bool]:
    return kernel_size, stride or kernel_size, padding, dilation, ceil_mode, return_indices


def _max_pool(reading: Record, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
    kernel, stride, padding, dilation, ceil_mode, wants_indices = _pool_arguments(*args, **kwargs)
    pool = _MAX_BY_RANK[_MAX[func]]
    result, indices = pool(input, kernel, stride, padding, dilation, ceil_mode, return_indices=True)
    reading.site(ArgMax(indices, input.shape))
    return (result, indices) if wants_indices or func.__name__.endswith("with_indices") else result


def _max_pool_linear(reading: Replay, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
    rank = _MAX[func]
    kernel, stride, padding, dilation, ceil_mode, wants_indices = _pool_arguments(*args, **kwargs)
    if wants_indices or func.__name__.endswith("with_indices"):
        raise reading.unsupported(func.__name__, "its indices are used by the network")
    if reading.sites is not None:
        return _route(input, reading.next_site(ArgMax, input.shape, func).indices, rank)
    if reading.pools == "max":
        return _MAX_BY_RANK[rank](input, kernel, stride, padding, dilation, ceil_mode)
    return _window_sum(input, rank, kernel, stride, padding, dilation, ceil_mode)


def _route(input: Tensor, indices: Tensor, rank: int) -> Tensor:
    return input.flatten(-rank).gather(-1, indices.flatten(-rank)).view(indices.shape)


def _window_sum(
    input: Tensor, rank: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Tensor:
    """Sum over each window of a max pool: a convolution with ones, padded as far as ceil mode reaches."""
    sizes = input.shape[-rank:]
    kernel, stride, padding, dilation = (_all_of(value, rank) for value in (kernel, stride, padding, dilation))
    pads: list[int] = []
    for size, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        reach = d * (k - 1) + 1
        steps = (size + 2 * p - reach + (s - 1 if ceil_mode else 0)) // s
        if ceil_mode and steps * s >= size + p:
            steps -= 1
        pads = [p, max(0, steps * s + reach - size - p), *pads]
    padded = F.pad(input, pads).reshape(-1, 1, *(n + pads[-2 * i - 2] + pads[-2 * i - 1] for i, n in enumerate(sizes)))
    ones = torch.ones(1, 1, *kernel, dtype=input.dtype, device=input.device)
    conv: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    summed = conv(padded, ones, stride=stride, dilation=dilation)
    return summed.view(*input.shape[:-rank], *summed.shape[2:])


def _adaptive_max_pool(
    reading: Record, func: Callable[..., Any], input: Tensor, output_size: Any, return_indices: bool = False
) -> Any:
    result, indices = _ADAPTIVE_MAX_BY_RANK[_ADAPTIVE_MAX[func]](input, output_size, return_indices=True)
    reading.site(ArgMax(indices, input.shape))
    return (result, indices) if return_indices or func.__name__.endswith("with_indices") else result


def _adaptive_max_pool_linear(
    reading: Replay, func: Callable[..., Any], input: Tensor, output_size: Any, return_indices: bool = False
) -> Tensor:
    rank = _ADAPTIVE_MAX[func]
    if return_indices or func.__name__.endswith("with_indices"):
        raise reading.unsupported(func.__name__, "its indices are used by the network")
    if reading.sites is not None:
        return _route(input, reading.next_site(ArgMax, input.shape, func).indices, rank)
    if reading.pools == "max":
        return _ADAPTIVE_MAX_BY_RANK[rank](input, output_size)
    return _apply(input, [m.ne(0).to(m) for m in _adaptive_matrices(input, output_size, rank)])


# -- average pools -----------------------------------------------------------------------------------------------------


def _native(reading: Record, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _average_pool_linear(
    reading: Replay,
    func: Callable[..., Any],
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    rank = _AVERAGE[func]
    window = [_all_of(value, rank) for value in (kernel_size, stride or kernel_size, padding)]
    mean = _average(input, rank, window, ceil_mode, count_include_pad, divisor_override)
    if reading.coefficients != "squared":
        return mean
    # The coefficient is the same over a window: its mean of ones over its sum of ones.
    ones = torch.ones(1, 1, *input.shape[-rank:], dtype=input.dtype, device=input.device)
    coefficient = _average(ones, rank, window, ceil_mode, count_include_pad, divisor_override)
    return mean * (coefficient / _average(ones, rank, window, ceil_mode, count_include_pad, 1)).reshape(
        coefficient.shape[2:]
    )


def _average(
    input: Tensor, rank: int, window: Sequence[list[int]], ceil_mode: bool, include_pad: bool, divisor: int | None
) -> Tensor:
    kernel, stride, padding = window
    if rank == 3:
        return F.avg_pool3d(input, kernel, stride, padding, ceil_mode, include_pad, divisor)
    if rank == 2:
        return F.avg_pool2d(input, kernel, stride, padding, ceil_mode, include_pad, divisor)
    flat = F.avg_pool2d(input.unsqueeze(-2), [1, *kernel], [1, *stride], [0, *padding], ceil_mode, include_pad, divisor)
    return flat.squeeze(-2)


def _adaptive_matrices(input: Tensor, output_size: Any, rank: int) -> list[Tensor]:
    """For each spatial dimension the matrix ``(out, in)`` of an adaptive average pool."""
    sizes = input.shape[-rank:]
    outputs = [output_size] * rank if isinstance(output_size, int) or output_size is None else list(output_size)
    outputs = outputs * rank if len(outputs) == 1 else outputs
    eyes = (torch.eye(n, dtype=input.dtype, device=input.device) for n in sizes)
    targets = (n if out is None else out for n, out in zip(sizes, outputs, strict=True))
    return [F.adaptive_avg_pool1d(eye.unsqueeze(0), out).squeeze(0).T for eye, out in zip(eyes, targets, strict=True)]


def _apply(input: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply one matrix to each of the last dimensions."""
    for i, matrix in enumerate(matrices):
        dim = i - len(matrices)
        input = (input.movedim(dim, -1) @ matrix.T).movedim(-1, dim)
    return input


def _adaptive_average_linear(reading: Replay, func: Callable[..., Any], input: Tensor, output_size: Any) -> Tensor:
    if reading.coefficients != "squared":
        return func(input, output_size)
    matrices = _adaptive_matrices(input, output_size, _ADAPTIVE_AVERAGE[func])
    if all(len(matrix) == 1 for matrix in matrices):
        spatial = tuple(range(-len(matrices), 0))
        return input.mean(spatial, keepdim=True) / input[(0,) * (input.dim() - len(matrices))].numel()
    return _apply(input, [matrix.square() for matrix in matrices])


# -- interpolation -----------------------------------------------------------------------------------------------------


def _interpolate_linear(
    reading: Replay,
    func: Callable[..., Any],
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    options = {"align_corners": align_corners, "recompute_scale_factor": recompute_scale_factor}
    if mode.startswith("nearest") or reading.coefficients == "plain":
        return F.interpolate(input, size, scale_factor, mode, antialias=antialias, **options)
    rank = input.dim() - 2
    sizes = [size] * rank if size is None or isinstance(size, int) else list(size)
    factors = [scale_factor] * rank if not isinstance(scale_factor, (tuple, list)) else list(scale_factor)
    matrices = []
    for n, out, factor in zip(input.shape[-rank:], sizes, factors, strict=True):
        # Every mode is separable; a 2-d map of height 1 gives the matrix of one dimension.
        eye = torch.eye(n, dtype=input.dtype, device=input.device)[:, None, None, :]
        target = None if out is None else (1, out)
        scale = None if factor is None else (1.0, float(factor))
        one_d = {"linear": "bilinear", "trilinear": "bilinear"}.get(mode, mode)
        row = F.interpolate(eye, target, scale, one_d, antialias=antialias, **options)
        matrices.append(reading.coefficient(row[:, 0, 0, :].T))
    return _apply(input, matrices)


_TABLES: tuple[tuple[dict[Callable[..., Any], int], Callable[..., Any], Callable[..., Any]], ...] = (
    (_MAX, _max_pool, _max_pool_linear),
    (_ADAPTIVE_MAX, _adaptive_max_pool, _adaptive_max_pool_linear),
    (_AVERAGE, _native, _average_pool_linear),
    (_ADAPTIVE_AVERAGE, _native, _adaptive_average_linear),
    (dict.fromkeys(spellings("interpolate"), 2), _native, _interpolate_linear),
)
for _functions, _record, _replay in _TABLES:
    RECORD.update(dict.fromkeys(_functions, _record))
    REPLAY.update(dict.fromkeys(_functions, _replay))
