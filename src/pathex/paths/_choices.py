"""What decides: comparisons, maxima, sorting and selections.

A decision has no derivative. It is recorded, and the replay takes the recorded one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathex.paths._readings import RECORD, REPLAY, Record, Replay, Slope
from pathex.paths._smooth import scaled

__all__: list[str] = []

_EXTREMES = {"max": torch.argmax, "min": torch.argmin}
_SORTED = ("topk", "sort", "kthvalue")
_TINY = 1e-24  # a root is read from here on: its slope is infinite at zero, where dead channels are


@RECORD.add("where")
def _where(reading: Record, func: Callable[..., Any], condition: Tensor, input: Any, other: Any) -> Any:
    if func is Tensor.where:
        condition, input = input, condition
    return torch.where(condition, input, other)


@REPLAY.add("where")
def _where_linear(reading: Replay, func: Callable[..., Any], condition: Tensor, input: Any, other: Any) -> Any:
    if func is Tensor.where:
        condition, input = input, condition
    zero = next(value for value in (input, other) if reading.carries(value)).new_zeros(())
    parts = []
    for value in (input, other):
        kept = value if reading.carries(value) or not isinstance(value, Tensor) else torch.zeros_like(value)
        parts.append(kept if isinstance(kept, Tensor) else zero)
    if reading.sites is None:  # either may be chosen
        return torch.zeros_like(condition, dtype=zero.dtype) + parts[0] + parts[1]
    return torch.where(condition, *parts)


@RECORD.add("masked_fill", "masked_fill_")
def _masked_fill(reading: Record, func: Callable[..., Any], input: Tensor, mask: Tensor, value: Any) -> Tensor:
    if reading.carries(value):
        raise reading.unsupported(func.__name__, "its value depends on the input")
    return func(input, mask, value)


@REPLAY.add("masked_fill", "masked_fill_")
def _masked_fill_linear(reading: Replay, func: Callable[..., Any], input: Tensor, mask: Tensor, value: Any) -> Tensor:
    if reading.sites is None:  # any may stay
        return func(input, torch.zeros_like(mask), 0.0)
    return func(input, mask, 0.0)


@RECORD.add("maximum", "fmax", "minimum", "fmin")
@REPLAY.add("maximum", "fmax", "minimum", "fmin")
def _larger(reading: Record | Replay, func: Callable[..., Any], input: Tensor, other: Tensor) -> Any:
    if func.__name__ in ("maximum", "fmax"):
        return reading.inside(lambda: torch.where(input > other, input, other))
    return reading.inside(lambda: torch.where(input < other, input, other))


@RECORD.add(*_EXTREMES)
@REPLAY.add(*_EXTREMES)
def _extreme(reading: Record | Replay, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``x.max()``, ``x.max(dim)`` and ``torch.max(a, b)``."""
    name = func.__name__
    second = args[0] if args else kwargs.get("other", kwargs.get("dim"))
    if isinstance(second, Tensor):
        return reading.inside(torch.maximum if name == "max" else torch.minimum, input, second)
    if second is None:
        return reading.inside(lambda: input.flatten()[_EXTREMES[name](input)])
    keepdim = args[1] if len(args) > 1 else kwargs.get("keepdim", False)

    def written() -> Any:
        indices = _EXTREMES[name](input, second, keepdim=True)
        open_ = isinstance(reading, Replay) and reading.sites is None
        values = input.sum(second, keepdim=True) if open_ else input.gather(second, indices)
        return (values, indices) if keepdim else (values.squeeze(second), indices.squeeze(second))

    return getattr(torch.return_types, name)(reading.inside(written))


@RECORD.add("amax", "amin")
def _extreme_over(
    reading: Record, func: Callable[..., Any], input: Tensor, dim: Any = (), keepdim: bool = False
) -> Any:
    largest = func(input, dim, keepdim=True)
    reached = (input == largest).to(input.dtype)
    dims = dim if isinstance(dim, int) or dim else tuple(range(input.dim()))
    reading.site(Slope((reached / reached.sum(dims, keepdim=True)).detach(), input.shape))
    return func(input, dim, keepdim=keepdim)


@REPLAY.add("amax", "amin")
def _extreme_over_linear(
    reading: Replay, func: Callable[..., Any], input: Tensor, dim: Any = (), keepdim: bool = False
) -> Any:
    dims = dim if isinstance(dim, int) or dim else tuple(range(input.dim()))
    routed = input if reading.sites is None else scaled(reading, func, input)
    return routed.sum(dims, keepdim=keepdim)


@RECORD.add(*_SORTED)
@REPLAY.add(*_SORTED)
def _sorted(reading: Record | Replay, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The values are gathered where the recorded order finds them."""
    dim = kwargs.get("dim", next(iter(args[func.__name__ != "sort" :]), -1))

    def indices() -> Tensor:
        found: Tensor = reading.decide(lambda x: func(x, *args, **kwargs).indices, (input,), {})
        return found

    order = indices()
    keepdim = order.dim() == input.dim()
    places = order if keepdim else order.unsqueeze(dim)
    if isinstance(reading, Replay) and reading.sites is None:  # any may come to any place
        values = reading.inside(lambda: input.sum(dim, keepdim=True).expand(places.shape))
    else:
        values = reading.inside(lambda: input.gather(dim, places))
    return getattr(torch.return_types, func.__name__)((values if keepdim else values.squeeze(dim), order))


@RECORD.add("norm", "vector_norm")
@REPLAY.add("norm", "vector_norm")
def _norm(
    reading: Record | Replay,
    func: Callable[..., Any],
    input: Tensor,
    p: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    ord: Any = None,
    out: None = None,
    dtype: Any = None,
) -> Any:
    """The Euclidean norm and the sum of absolute values, written out."""
    order = {"fro": 2}.get(p, p) if ord is None else ord
    dims = tuple(range(input.dim())) if dim is None else dim
    if order == 1:
        return reading.inside(lambda: input.abs().sum(dims, keepdim=keepdim))
    if order != 2 and order is not None:
        raise reading.unsupported(func.__name__, f"of order {order}")
    return reading.inside(_Euclidean.of, input, dims, keepdim)


class _Euclidean:
    """A name of its own for the norm, which has a finite slope at zero where a square root has none."""

    @staticmethod
    def of(x: Tensor, dims: Any, keepdim: bool) -> Tensor:
        return x.square().sum(dims, keepdim=keepdim).clamp_min(_TINY).sqrt()


def _matrix_norm(
    reading: Record | Replay,
    func: Callable[..., Any],
    input: Tensor,
    ord: Any = None,
    dim: Any = None,
    keepdim: bool = False,
    *,
    out: None = None,
    dtype: Any = None,
) -> Any:
    """``torch.linalg.norm``, which over two dimensions means a norm of matrices."""
    dims = input.dim() if dim is None else 1 if isinstance(dim, int) else len(dim)
    if dims > 1 and ord not in (None, "fro"):
        raise reading.unsupported(func.__name__, f"a matrix norm of order {ord}")
    return _norm(reading, func, input, 2 if ord is None else ord, dim, keepdim)


RECORD[torch.linalg.norm] = _matrix_norm
REPLAY[torch.linalg.norm] = _matrix_norm


@RECORD.add("normalize")
@REPLAY.add("normalize")
def _normalize(
    reading: Record | Replay,
    func: Callable[..., Any],
    input: Tensor,
    p: float = 2.0,
    dim: Any = 1,
    eps: float = 1e-12,
    out: None = None,
) -> Any:
    return reading.inside(lambda: input / input.norm(p, dim, keepdim=True).clamp_min(eps))


@RECORD.add("var", "std", "var_mean", "std_mean")
@REPLAY.add("var", "std", "var_mean", "std_mean")
def _variance(reading: Record | Replay, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Variance over dimensions, written out."""
    first = args[0] if args else kwargs.get("dim")
    dim = None if isinstance(first, bool) else first
    unbiased = first if isinstance(first, bool) else args[1] if len(args) > 1 else kwargs.get("unbiased", True)
    correction = kwargs.get("correction", 1 if unbiased else 0)
    keepdim = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    dims = tuple(range(input.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    count = 1
    for d in dims:
        count *= input.shape[d]

    def written() -> Any:
        mean = input.mean(dims, keepdim=True)
        spread = (input - mean).square().sum(dims, keepdim=keepdim) / max(
            count - (1 if correction is None else correction), 1
        )
        result = spread.clamp_min(_TINY).sqrt() if func.__name__.startswith("std") else spread
        if not func.__name__.endswith("mean"):
            return result
        return result, mean if keepdim else input.mean(dims)

    return reading.inside(written)
