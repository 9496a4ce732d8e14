"""Sums over paths in float32 where that is safe, in float64 elsewhere."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pathex.errors import PathexError
from pathex.scores._reader import PathReader

__all__ = ["safely"]

# Score is conserved: every layer on all paths holds the sum in all. Within these bounds no weight that matters under-
# or overflows float32; beyond them the pass is repeated in float64.
_SAFE = (1e-25, 1e30)


def safely(
    reader: PathReader, summed: Callable[[PathReader], tuple[float, dict[str, Tensor]]], method: str
) -> dict[str, Tensor]:
    """Scores in the reader's precision, or in float64 where the sum over paths or a whole layer leaves float32.

    Args:
        reader: The reader.
        summed: From a reader to the sum over paths and the scores, each layer's in proportion to what of the sum passes
            through it.
        method: Name for the error message.

    Returns:
        Name to score.

    Raises:
        PathexError: If the sum is not finite in float64.
    """
    memo = reader.problem.memo
    # The sum falls slowly from round to round: where the last one was out of bounds, this one is likely to be.
    if reader.precision != torch.float64 and memo.get("sum leaves float32", False):
        reader = reader.in_float64()
    total, scores = summed(reader)
    if reader.precision != torch.float64:
        # A faint branch may vanish where the sum does not. What is zero in float64 too is known to lie on no path.
        known: set[str] = memo.setdefault("zero in float64", set())
        if _zero(scores) - known or not _SAFE[0] < total < _SAFE[1]:
            total, scores = summed(reader.in_float64())
            known |= _zero(scores)
    memo["sum leaves float32"] = not _SAFE[0] < total < _SAFE[1]
    if not math.isfinite(total):
        raise PathexError(
            f"{method}: the sum over paths is {total} in float64; the network's weights or statistics overflow"
        )
    return scores


def _zero(scores: dict[str, Tensor]) -> set[str]:
    found = torch.stack([score.any() for score in scores.values()]).tolist()  # brought to the CPU all at once
    return {name for name, some in zip(scores, found, strict=True) if not some}
