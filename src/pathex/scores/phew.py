r"""PHEW, paths with higher edge weights (Patil, Dovrolis, ICML 2021): the union of random walks through the network.

    P(weight of the next step = j) = |theta_j| / sum of |theta| over the weights of the unit that the walk is at.

Walks go from the inputs to the outputs and back, in turn. The published mask holds what the first walks use, as many as
give the wanted number of weights. So weights are ranked by the walk that uses them first, and every threshold is such
a mask.
"""

import torch
from torch import Tensor

from pathex.errors import InvalidInput, UnknownName
from pathex.paths import Walker, count_paths
from pathex.scores._method import Card, Method
from pathex.scores._problem import Problem, generator
from pathex.scores._reader import OPTIONS, PathReader

__all__ = ["METHOD"]

_MOST = 1_000_000
_TIE = 1e-8  # less than one use in a batch of walks


def _score(
    problem: Problem,
    *,
    walks: int | None = None,
    per_sample: str = "refuse",
    redraw: object = False,
    scales: str = "auto",
    output: str | int | None = None,
) -> dict[str, Tensor]:
    total = sum(weight.numel() for weight in problem.prunable.values())
    count = min(total, _MOST) if walks is None else walks
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidInput(f"walks must be an integer of at least 1, or None, not {walks!r}")
    if per_sample not in ("refuse", "one"):
        raise UnknownName("per_sample", per_sample, ("refuse", "one"))
    reader = PathReader(problem, "running", 1, redraw, scales, output, torch.float64)  # type: ignore[arg-type]
    weights, x = reader.weights(), problem.images[:1]
    mask = problem.mask or {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    paths = count_paths(problem.model, x, mask, per_sample=per_sample, output=output).through  # type: ignore[arg-type]
    walker = Walker(
        problem.model,
        x,
        weights,
        generator(problem.seed, problem.round),
        keep={name: through > 0 for name, through in paths.items()},
        other=reader.other(),
        per_sample=per_sample,  # type: ignore[arg-type]
        output=output,
    )
    scores = {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in weights.items()}
    batches = _batches(count)
    for number, size in enumerate(batches):
        for name, used in walker.walk(size).items():
            _rank(scores[name].view(-1), used, len(batches) - number)
    return {
        name: score.to(problem.device) + _TIE * weights[name].abs() / _largest(weights)
        for name, score in scores.items()
    }


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


def _largest(weights: dict[str, Tensor]) -> float:
    return max(float(weight.abs().max()) for weight in weights.values()) or 1.0


METHOD = Method(
    Card(
        name="phew",
        title="PHEW, paths with higher edge weights",
        citation="Patil, Dovrolis: PHEW: constructing sparse networks that learn fast and generalize well without "
        "training data. ICML 2021, arXiv 2010.11354",
        equation="S_j falls with the number of the walk that first uses j; P(next weight = j) = |theta_j| / sum of "
        "|theta| over the weights of the unit that the walk is at",
        summed="nothing. Walks come in batches, one by one at first, later a tenth of all before together; within a "
        "batch the number of uses counts, then the magnitude, which also ranks what no walk used",
        needs="nothing",
        batchnorm="not used: it passes walks on",
        rounds=1,
        cost="1 forward and backward pass of one image in float64 that finds the weights on paths, and about "
        "10 log(walks) readings of it, forwards and back, in which each layer draws one weight for each walk and "
        "computes nothing else; about 40 bytes for each weight",
        holds_for="networks that can be read as open paths: convolutions, linear layers, activations, pools, sums. "
        "per_sample='one' passes walks through normalisation over a sample and attention",
        differences="the released code adds walks one by one until the density is reached; here the cut may fall into "
        "a batch of more than one. Between the 3x3 layers of a residual block it ignores the shortcut, and takes a 1x1 "
        "shortcut with probability 1/2; here walks take every branch of a fork, and where branches meet those who go "
        "on are drawn from all, so that every layer is passed by as many. Kernel positions are drawn by their "
        "magnitude, as released. Walks keep to weights that lie on paths. Biases are not pruned",
        checked="frequencies of uses against exact probabilities and explicit single walks on perceptrons, "
        "convolutions with groups, residual and concatenated branches, within five standard errors",
        options={
            "walks": "number of walks in all (default: as many as there are prunable weights, at most a million). Too "
            "few leave weights that magnitude ranks",
            "per_sample": "coefficients that belong to a sample (LayerNorm, attention, gates): refuse (default): an "
            "error; one: they pass walks on",
            **{name: OPTIONS[name] for name in ("redraw", "scales", "output")},
        },
    ),
    _score,
    paths=True,
)
