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
from pathex.scores.reader import TOTAL, PathReader

Summed = Callable[[PathReader], tuple[Tensor, dict[str, Tensor]]]
"""From a reader to a scalar and scores by name."""
Sized = tuple[dict[str, Tensor], dict[str, float]]
"""Scores by name, and what tells whether they are in bounds: of each, or of all together (`TOTAL`)."""

# Score is conserved: every layer on all paths holds the sum in all. Within these bounds no weight that matters under-
# or overflows float32; beyond them the pass is repeated in float64.
SAFE = (1e-25, 1e30)


def safely(problem: Problem, run: Callable[[Problem], Sized]) -> dict[str, Tensor]:
    """Scores in a problem's precision, or in float64 where one of their sizes leaves float32."""
    memo = problem.memo
    # What is zero in float64 too is known to lie on no path: a faint branch may vanish where the sum does not.
    known: set[str] = memo.setdefault("zero in float64", set())
    # Sizes change slowly from round to round: where the last ones were out of bounds, these are likely to be.
    if problem.dtype != torch.float64 and not memo.get("leaves float32", False):
        scores, sizes = run(problem)
        if all(name in known if size == 0 else SAFE[0] < size < SAFE[1] for name, size in sizes.items()):
            return scores
    scores, sizes = run(problem.in_float64())
    if overflown := [name or "the sum over paths" for name, size in sizes.items() if not math.isfinite(size)]:
        raise PathexError(f"the scores of {listed(overflown)} overflow float64; are weights and images of usual size?")
    known |= {name for name, size in sizes.items() if size == 0}
    far = [name for name, size in sizes.items() if size and not SAFE[0] < size < SAFE[1]]
    memo["leaves float32"] = bool(far)
    if problem.dtype != torch.float64 and (said := [name for name in far if name != TOTAL]):
        problem.doubt(f"scores leave float32 and are computed in float64: {listed(said)}")
    return scores


def extremes(scores: Mapping[str, Tensor]) -> dict[str, Sequence[float]]:
    """The least and the greatest score of each weight, NaN where one is NaN, all brought to the CPU at once."""
    found = torch.stack([torch.stack(score.aminmax()).double() for score in scores.values()]).tolist()
    return dict(zip(scores, found, strict=True))


def with_largest(scores: dict[str, Tensor]) -> Sized:
    """Scores with the largest absolute one of each weight, NaN where one is NaN."""
    return scores, {name: max(map(abs, found)) for name, found in extremes(scores).items()}


def with_sum(reader: PathReader, summed: Summed) -> Sized:
    """Scores with the sum over paths, which stands for all that are not zero: brought to the CPU all at once."""
    if reader.tf32 and reader.problem.device.type != "cuda":
        raise InvalidInput(f"tf32=True needs a CUDA device, not {reader.problem.device.type!r}; leave it out")
    with tf32_products() if reader.tf32 else nullcontext():
        total, scores = summed(reader)
    some = torch.stack([score.any() for score in scores.values()])
    number, *found = torch.cat([total.detach().double().view(1), some.to(total.device).double()]).tolist()
    return scores, {TOTAL: number, **dict(zip(scores, found, strict=True))}


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
