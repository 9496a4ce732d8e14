"""Path eXclusion as printed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pathex.errors import PathexError
from pathex.graph import each, ones, tensors_in
from pathex.paths import Linear, Moments, PerSample, Smooth, Weights, run_linear
from pathex.scores.method import PathMethod
from pathex.scores.precision import open_sum, safely, with_sum
from pathex.scores.problem import Problem, once
from pathex.scores.reader import TOTAL, PathReader, Recorded

# Products of ones along paths reach this in float32 from a start that is as small as they are large.
_WIDEST = 1e60


def _ones(reader: PathReader, dtype: torch.dtype) -> Weights:
    """The mask in place of prunable weights, ones in place of all other parameters."""
    one = torch.ones((), dtype=dtype, device=reader.problem.device)
    ones = {name: one.expand(parameter.shape) for name, parameter in reader.problem.model.named_parameters()}
    return reader.problem.weights(ones, dtype)


def _scale(reader: PathReader) -> float | None:
    """Factor of squared images that keeps the network of ones within float32; None where there is none."""

    # With all gates open and the largest entry of all images everywhere no output can be larger. The mask of a later
    # round makes outputs smaller, by much less than there is room below.
    def scale() -> float | None:
        most = (
            float(_open_ones(reader).max())
            * max(float(x.abs().max()) for x in tensors_in(reader.problem.images) if x.is_floating_point()) ** 2
        )
        return 2.0 ** -round(math.log2(most) / 2) if 0 < most < _WIDEST else None

    return None if reader.precision == torch.float64 else once(reader.problem.memo, "scale of ones", scale)


def _open_ones(reader: PathReader) -> Tensor:
    """The outputs of the network of ones in float64 for an image of ones, with all gates open, ``(1, ...)``."""
    how: Any = {"coefficients": "ones", "per_sample": reader.per_sample}
    with torch.no_grad():
        start = ones(reader.problem.images[:1], torch.float64)
        return run_linear(Linear(reader.graph(start), _ones(reader, torch.float64), None, **how), start)


def _seen(reader: PathReader, dtype: torch.dtype, scale: float) -> tuple[Tensor, Sequence[Moments]]:
    """The sum over images of each output of the network of ones; and the statistics of the pass."""
    tensors, ones = reader.tensors(scored=False), _ones(reader, dtype)
    used: list[Sequence[Moments]] = []

    def part(recorded: Recorded) -> dict[str, Tensor]:
        x, recording = recorded()
        used.append(recording.statistics)  # the same in all parts
        squared = each(x, lambda image: image.to(dtype).square() * scale)
        with torch.no_grad():
            out = run_linear(reader.linear(ones, recording, coefficients="ones"), squared)
        return {TOTAL: out.double().sum(0, keepdim=True) / scale}

    return reader.problem.processes.sum_over(reader.recordings(tensors), part)[TOTAL], used[-1]


@dataclass(frozen=True, kw_only=True)
class PXLiteral(PathMethod):
    r"""Path eXclusion as printed: the product of two sums over paths (Iurada, Ciccone, Tommasi, CVPR 2024, Eq. 12-14).

        R = sum_{n,k} ( sum_p a_p(x_n)^2 x_{n,s(p)}^2 ) ( sum_p v_p^2 ),        S_j = theta_j^2 dR / d(theta_j^2).

    The first factor is the network of ones with recorded gates and squared input, the second the open network of
    squared weights with an input of ones, which is the same for every image. From the images as they are the network of
    ones leaves float32 in the first round of a ResNet-20: it starts from images scaled down by a power of two, and
    where that is not enough (deeper networks) it is computed in float64; so is the second factor where it leaves
    float32.

    Attributes:
        smooth: Coefficient of smooth activations (GELU, SiLU, ...): ``secant`` phi(x)/x, ``tangent`` phi'(x), or
            ``mixed``: the secant on the way and the tangent on the way back, as the kernel has it.
        per_sample: Coefficients that only a sample has (LayerNorm and its like, attention, gates, products of
            branches): ``refuse``, or ``one``: they count 1, products of matrices average.
    """

    name = "px-literal"
    title = "Path eXclusion as printed"
    citation = (
        "Iurada, Ciccone, Tommasi: Finding Lottery Tickets in Vision Models via Data-driven Spectral "
        "Foresight Pruning. CVPR 2024, arXiv 2406.01820"
    )
    equation = "S_j = theta_j^2 dR/d(theta_j^2), R = sum_{n,k} (sum_p a_p(x_n)^2 x_{n,s(p)}^2) (sum_p v_p^2)"
    needs = "images"
    rounds = 100
    piecewise_linear = True
    beside = 20

    smooth: Smooth = "secant"
    per_sample: PerSample = "refuse"

    def score(self, problem: Problem) -> dict[str, Tensor]:
        reader = self.reader(problem)
        scale = _scale(reader)
        seen, statistics = _seen(reader, torch.float64 if scale is None else reader.precision, scale or 1.0)
        if scale is not None:
            # What is zero in float64 too is known to be on no path: with all gates open, or with those of the images.
            known = problem.memo.setdefault("zero outputs in float64", torch.zeros_like(seen, dtype=torch.bool))
            if ((seen == 0) & ~known).any():
                known |= _open_ones(reader) == 0
            if not seen.isfinite().all() or ((seen == 0) & ~known).any():
                seen, statistics = _seen(reader, torch.float64, 1.0)
                known |= seen == 0
        if not seen.isfinite().all():
            raise PathexError(
                "px-literal: the network of ones leaves float64; use 'px', which agrees in what it measures"
            )
        # The second factor starts from numbers of about one, so that it fits where its paths do.
        most = 2.0 ** math.frexp(float(seen.max()))[1]
        summed = partial(open_sum, seen=seen / most, statistics=statistics)
        scores = safely(problem, lambda each: with_sum(self.reader(each), summed))
        return {name: score.double().mul_(most) for name, score in scores.items()}
