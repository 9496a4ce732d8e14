"""The best of many scores, exactly as many as are wanted."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["cut"]

_COUNTED = 1 << 22  # candidates beyond which their scores are not copied into one vector
_AT_A_TIME = 1 << 20
_DIGIT = 16  # bits


def cut(
    scores: Sequence[Tensor], candidates: Tensor, count: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, int]:
    """The best of the candidates, with all that tie with the last of them.

    Args:
        scores: Vectors on the CPU, one for each layer.
        candidates: Bool vector over all of them.
        count: How many are wanted, at least 1.
        dtype: The precision in which scores are compared.

    Returns:
        Bool vectors: the candidates that reach the score of the ``count``-th best one; those of exactly that score, if
        there are too many; and by how many.
    """
    dtype = torch.float32 if dtype is torch.bfloat16 else dtype  # which NumPy does not know
    here = candidates.split([len(score) for score in scores])
    numbers = [int(part.count_nonzero()) for part in here]
    if count >= sum(numbers):
        return candidates.clone(), None, 0
    if sum(numbers) > _COUNTED:
        threshold = _by_counting(scores, here, count, dtype)
    else:
        threshold = _by_partition(scores, here, numbers, count, dtype)
    keep, level = torch.empty_like(candidates), functools.partial(_reaching, scores, here, threshold, dtype)
    for part, found in zip(keep.split([len(score) for score in scores]), level(torch.ge), strict=True):
        part.copy_(found)
    surplus = int(keep.count_nonzero()) - count
    return keep, torch.cat(list(level(torch.eq))) if surplus else None, surplus


def _reaching(
    scores: Sequence[Tensor], candidates: Sequence[Tensor], threshold: float, dtype: torch.dtype, compare: Any
) -> Iterator[Tensor]:
    """Layer by layer the candidates whose score compares to a threshold."""
    for score, part in zip(scores, candidates, strict=True):
        yield compare(score.to(dtype), threshold).logical_and_(part)


def _by_partition(
    scores: Sequence[Tensor], candidates: Sequence[Tensor], numbers: Sequence[int], count: int, dtype: torch.dtype
) -> float:
    """The ``count``-th best score of the candidates, of which each layer has a number."""
    values = torch.empty(sum(numbers), dtype=dtype)
    for score, part, target in zip(scores, candidates, values.split(list(numbers)), strict=True):
        np.compress(part.numpy(), score.to(dtype).numpy(), out=target.numpy())
    place = len(values) - count
    values.numpy().partition(place)
    return float(values[place])


def _by_counting(scores: Sequence[Tensor], candidates: Sequence[Tensor], count: int, dtype: torch.dtype) -> float:
    """The same without a copy of the scores: 16 bits of the threshold after another, the leading ones first."""
    bits = torch.finfo(dtype).bits
    known: Any = None  # the leading bits of the threshold
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        number, lowest = np.zeros(1 << _DIGIT, dtype=np.int64), 0
        for keys in _keys(scores, candidates, dtype):
            leading = keys >> shift
            if known is None:
                lowest = -(1 << _DIGIT - 1)  # the first digit has the sign
            else:
                leading = leading[leading >> _DIGIT == known] & (1 << _DIGIT) - 1
            number += np.bincount(leading - lowest, minlength=1 << _DIGIT)
        reached = number[::-1].cumsum()
        place = int(reached.searchsorted(count))
        count -= int(reached[place - 1]) if place else 0
        digit = (1 << _DIGIT) - 1 - place + lowest
        known = digit if known is None else (known << _DIGIT) + digit
    return float(_in_order(np.array(known, dtype=f"i{bits // 8}")).view(f"f{bits // 8}"))


def _keys(scores: Sequence[Tensor], candidates: Sequence[Tensor], dtype: torch.dtype) -> Iterator[Any]:
    """Integers in the order of the candidates' scores, some at a time."""
    for score, part in zip(scores, candidates, strict=True):
        for some, here in zip(score.split(_AT_A_TIME), part.split(_AT_A_TIME), strict=True):
            values = np.compress(here.numpy(), some.to(dtype).numpy())
            yield _in_order(values.view(f"i{values.itemsize}")).astype(np.int64)


def _in_order(bits: Any) -> Any:
    """Turns the magnitude of negative numbers around.

    Returns:
        Integers in the order of the floating-point numbers with these bits; and back.
    """
    return bits ^ (bits >> 8 * bits.itemsize - 1 & np.iinfo(bits.dtype).max)
