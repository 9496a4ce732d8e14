"""PHEW, paths with higher edge weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pathex.graph import Output
from pathex.masks import all_kept
from pathex.paths import PerSample, Walker, count_paths
from pathex.scores.method import Method
from pathex.scores.options import CountOrNone, Redraw, Scales
from pathex.scores.problem import Problem, generator
from pathex.scores.reader import PathReader

_MOST = 1_000_000
_TIE = 1e-8  # less than one use in a batch of walks


def _batches(walks: int) -> list[int]:
    """Sizes of the batches of walks: one by one at first, later a tenth of all before together."""
    sizes: list[int] = []
    while (done := sum(sizes)) < walks:
        sizes.append(min(max(1, done // 10), walks - done))
    return sizes


def _rank(scores: Tensor, used: Tensor, rank: int) -> None:
    """Weights that are used for the first time get the rank of the batch, and a part of one for each use."""
    entries, uses = used.unique(return_counts=True)
    new = scores[entries] == 0
    scores[entries[new]] = rank + uses[new].double() / (len(used) + 1)


@dataclass(frozen=True, kw_only=True)
class Phew(Method):
    r"""PHEW, paths with higher edge weights (Patil, Dovrolis, ICML 2021): the union of random walks.

        P(weight of the next step = j) = |theta_j| / sum of |theta| over the weights of the unit that the walk is at.

    Walks go from the inputs to the outputs and back, in turn. The published mask holds what the first walks use, as
    many as give the wanted number of weights. So weights are ranked by the walk that uses them first, and every
    threshold is such a mask.

    Attributes:
        walks: Number of walks in all; None: as many as there are prunable weights, at most a million. Too few leave
            weights that magnitude ranks.
        per_sample: Coefficients that belong to a sample (LayerNorm, attention, gates): ``refuse``, or ``one``: they
            pass walks on.
        redraw: True draws normal weights with each tensor's own standard deviation every round (seeded by seed and
            round), or a function ``(name, tensor, generator) -> tensor``.
        scales: ``auto``: multiplicative parameters that start equal and below 0.01, and a head of zeros, are read as
            one, with a warning; ``stored``: as they are.
        output: Which of several outputs counts: a key or an index; None: the first tensor.
    """

    name = "phew"
    title = "PHEW, paths with higher edge weights"
    citation = (
        "Patil, Dovrolis: PHEW: constructing sparse networks that learn fast and generalize well without "
        "training data. ICML 2021, arXiv 2010.11354"
    )
    equation = (
        "S_j falls with the number of the walk that first uses j; P(next weight = j) = |theta_j| / sum of "
        "|theta| over the weights of the unit that the walk is at"
    )
    paths = True

    walks: CountOrNone = None
    per_sample: PerSample = "refuse"
    redraw: Redraw = False
    scales: Scales = "auto"
    output: Output = None

    def score(self, problem: Problem) -> dict[str, Tensor]:
        count = self.walks or min(sum(weight.numel() for weight in problem.prunable.values()), _MOST)
        reader = PathReader(problem.in_float64(), self.name, "running", 1, self.redraw, self.scales, self.output)
        weights, x = reader.weights(), problem.images[:1]
        mask = problem.mask or all_kept(weights)
        paths = count_paths(problem.model, x, mask, per_sample=self.per_sample, output=self.output).through
        walker = Walker(
            problem.model,
            x,
            weights,
            generator(problem.seed, problem.round),
            keep={name: through > 0 for name, through in paths.items()},
            other=reader.other(),
            per_sample=self.per_sample,
            output=self.output,
        )
        scores = {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in weights.items()}
        batches = _batches(count)
        for number, size in enumerate(batches):
            for name, used in walker.walk(size).items():
                _rank(scores[name].view(-1), used, len(batches) - number)
        largest = max(float(weight.abs().max()) for weight in weights.values()) or 1.0
        return {name: scores[name].to(problem.device) + _TIE * weights[name].abs() / largest for name in scores}
