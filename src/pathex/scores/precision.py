"""Scores and sums over paths in float32 where that is safe, in float64 elsewhere."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pathex.errors import InvalidInput, PathexError, listed
from pathex.graph import ones, tf32_products
from pathex.paths import Linear, Moments, run_linear
from pathex.scores.problem import Problem
from pathex.scores.reader import PathReader

Summed = Callable[[PathReader], tuple[Tensor, dict[str, Tensor]]]
"""From a reader to a scalar and scores by name."""

# Score is conserved: every layer on all paths holds the sum in all. Within these bounds no weight that matters under-
# or overflows float32; beyond them the pass is repeated in float64.
SAFE = (1e-25, 1e30)


def safely(reader: PathReader, summed: Summed) -> dict[str, Tensor]:
    """Scores in the reader's precision, or in float64 where the sum over paths or a whole layer leaves float32."""
    memo = reader.problem.memo
    # The sum falls slowly from round to round: where the last one was out of bounds, this one is likely to be.
    if reader.precision != torch.float64 and memo.get("sum leaves float32", False):
        reader = reader.in_float64()
    total, zero, scores = _passes(reader, summed)
    if reader.precision != torch.float64:
        # A faint branch may vanish where the sum does not. What is zero in float64 too is known to lie on no path.
        known: set[str] = memo.setdefault("zero in float64", set())
        if zero - known or not SAFE[0] < total < SAFE[1]:
            total, zero, scores = _passes(reader.in_float64(), summed)
            known |= zero
    memo["sum leaves float32"] = not SAFE[0] < total < SAFE[1]
    if not math.isfinite(total):
        raise PathexError(
            f"{reader.method}: the sum over paths is {total} in float64; the network's weights or statistics overflow"
        )
    return scores


def widened(score: Callable[[Problem], dict[str, Tensor]], problem: Problem) -> dict[str, Tensor]:
    """Scores in a problem's precision, or in float64 where those of a layer leave float32, which is said once."""
    memo, known = problem.memo, problem.memo.setdefault("zero in float64", set())
    if problem.dtype != torch.float64 and not memo.get("scores leave float32", False):
        scores = score(problem)
        if all(name in known if most == 0 else SAFE[0] < most < SAFE[1] for name, most in _largest(scores).items()):
            return scores
    scores = score(problem.in_float64())
    largest = _largest(scores)
    if overflown := [name for name, most in largest.items() if not math.isfinite(most)]:
        raise PathexError(f"the scores of {listed(overflown)} overflow float64; are weights and images of usual size?")
    known |= {name for name, most in largest.items() if most == 0}
    far = [name for name, most in largest.items() if most and not SAFE[0] < most < SAFE[1]]
    if problem.dtype != torch.float64 and far:
        memo["scores leave float32"] = True
        problem.doubt(f"scores leave float32 and are computed in float64: {listed(far)}")
    return scores


def extremes(scores: Mapping[str, Tensor]) -> dict[str, Sequence[float]]:
    """The least and the greatest score of each weight, NaN where one is NaN, all brought to the CPU at once."""
    found = torch.stack([torch.stack(score.aminmax()).double() for score in scores.values()]).tolist()
    return dict(zip(scores, found, strict=True))


def _largest(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest absolute score of each weight, NaN where one is NaN."""
    return {name: max(map(abs, found)) for name, found in extremes(scores).items()}


def _passes(reader: PathReader, summed: Summed) -> tuple[float, set[str], dict[str, Tensor]]:
    """The sum as a number, the names of scores that are zero, and the scores: brought to the CPU all at once."""
    if reader.tf32 and reader.problem.device.type != "cuda":
        raise InvalidInput(f"tf32=True needs a CUDA device, not {reader.problem.device.type!r}; leave it out")
    with tf32_products() if reader.tf32 else nullcontext():
        total, scores = summed(reader)
    some = torch.stack([score.any() for score in scores.values()])
    number, *found = torch.cat([total.detach().double().view(1), some.to(total.device).double()]).tolist()
    return number, {name for name, each in zip(scores, found, strict=True) if not each}, scores


def open_sum(
    reader: PathReader, *, statistics: Sequence[Moments] | None = None, seen: Tensor | None = None, **how: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """What an input of ones brings to the outputs of the open network, and the scores of the weights it passes."""
    tensors = reader.tensors()
    with torch.enable_grad():
        known = reader.coefficients() if statistics is None else statistics
        start = ones(reader.problem.images[:1], reader.precision)
        reading = Linear(reader.graph(start), tensors, None, known, per_sample=reader.per_sample, **how)
        reach = run_linear(reading, reader.laid_out(start))
        total = (reach if seen is None else reach * seen.to(reach)).sum()
        return total.detach(), reading.scores(total)
