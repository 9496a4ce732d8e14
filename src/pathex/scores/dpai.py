"""DPaI, differentiable pruning at initialization."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pathex.errors import PathexError
from pathex.graph import Output
from pathex.paths import PathCounts, PerSample, count_paths
from pathex.scores.method import Method
from pathex.scores.options import Count, Positive, Share
from pathex.scores.problem import Problem
from pathex.scores.search import State, largest, leaves, steps, target_of

_EVERY = 100  # steps between checkpoints


def _weighted(counts: PathCounts, mask: dict[str, Tensor], alpha: float, beta: float) -> dict[str, Tensor]:
    """The derivative of the log number of paths by each entry of the mask, with what opens units weighted apart."""
    slopes = {}
    for name, through in counts.through.items():
        slopes[name], times = torch.zeros_like(through), torch.zeros_like(through)
        for use in counts.uses[name]:
            values, used = use.by_units(through), use.by_units(through * mask[name].to(through))
            unit = (used.sum((2, 3), keepdim=True) > 0).to(values)
            kernel = (used.sum(3, keepdim=True) > 0).to(values)
            share = (1 - alpha) + alpha * ((1 - beta) * (1 - unit) + beta * (1 - kernel))
            use.add_to(slopes[name], values * share / counts.total)
            use.add_to(times, torch.ones_like(values))
        slopes[name] /= times.clamp_min(1)  # paths through all uses of an entry are counted in each
    return slopes


@dataclass(frozen=True, kw_only=True)
class DPaI(Method):
    r"""DPaI (Xiang et al., ICLR 2025): scores that are trained for many paths, units and kernels in the mask.

        m = 1 where |s_j| is among the K largest,   S_j = |s_j|,   ds_j by Adam along  sign(s_j) d log P / dm_j  times
        (1 - alpha) + alpha ((1 - beta) [unit of j lies on no path] + beta [kernel of j lies on no path]).

    P is the number of paths; its derivative by an entry that is not kept counts the paths that it would open. Scores
    start normal. Published with the densities of ``allocation="erk"``. It reads no weights and no images.

    Attributes:
        alpha: Weight of what opens units and kernels against paths, in [0, 1].
        beta: Weight of kernels against units, in [0, 1].
        steps: Steps of Adam, as released.
        lr: Learning rate of the scores, as released.
        per_sample: Coefficients that belong to a sample (LayerNorm, attention, gates): ``refuse``, or ``one``: they
            count 1.
        output: Which of several outputs counts: a key or an index; None: the first tensor.
    """

    name = "dpai"
    title = "DPaI, differentiable pruning at initialization"
    citation = (
        "Xiang, Nguyen-Tri, Nguyen, Pham, Than, Tran-Thanh, Wen: DPaI: differentiable pruning at initialization with "
        "node-path balance principle. ICLR 2025"
    )
    equation = (
        "S_j = |s_j|, trained along sign(s_j) dlogP/dm_j ((1 - alpha) + alpha ((1 - beta) [unit of j on no path] + "
        "beta [kernel of j on no path])), m_j = 1 for the K largest |s_j|, P the number of paths"
    )
    paths = True
    trains = True
    beside = 100

    alpha: Share = 0.99
    beta: Share = 0.5
    steps: Count = 3000
    lr: Positive = 0.005
    per_sample: PerSample = "refuse"
    output: Output = None

    def score(self, problem: Problem) -> dict[str, Tensor]:
        target, allowed = target_of(problem, self.name), problem.allowed
        values = leaves(problem, lambda w, source: torch.randn(w.shape, dtype=torch.float64, generator=source))
        state = State(values, torch.optim.Adam(values.values(), lr=self.lr))
        assert state.optimizer is not None
        for _ in steps(problem, self, state, self.steps, _EVERY):
            mask = largest({name: value.abs() for name, value in values.items()}, allowed, target)
            counts = count_paths(
                problem.model, problem.images[:1], mask, per_sample=self.per_sample, output=self.output, opened=True
            )
            if not counts.total:
                raise PathexError(
                    "dpai: the mask of the search has no path left, and nothing leads on from there; allowed: a lower "
                    "sparsity, allocation='erk' or another seed"
                )
            for name, slope in _weighted(counts, mask, self.alpha, self.beta).items():
                values[name].grad = -(slope * values[name].detach().sign()).to(values[name])
            state.optimizer.step()
        return {name: value.detach().abs() for name, value in values.items()}
