r"""Random scores, uniform in (0, 1): with a global threshold a random mask whose layers keep about the same density."""

import torch
from torch import Tensor

from pathex.scores._method import Card, Method
from pathex.scores._problem import Problem, generator

__all__ = ["METHOD"]


def _score(problem: Problem) -> dict[str, Tensor]:
    source = generator(problem.seed, problem.round)
    return {
        name: torch.rand(weight.shape, generator=source, dtype=torch.float64).to(problem.device)
        for name, weight in problem.prunable.items()
    }


METHOD = Method(
    Card(
        name="random",
        title="Random",
        citation="Liu et al.: The unreasonable effectiveness of random pruning. ICLR 2022, arXiv 2202.02643",
        equation="S_j ~ U(0, 1), drawn on the CPU from (seed, round)",
        summed="nothing",
        needs="nothing",
        batchnorm="not used",
        rounds=1,
        cost="no pass",
        holds_for="any network",
        differences="none",
        checked="seeded; layer densities within the binomial error",
        options={},
    ),
    _score,
)
