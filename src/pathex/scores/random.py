"""Random."""

import torch
from torch import Tensor

from pathex.scores.method import Method
from pathex.scores.problem import Problem, generator


class Random(Method):
    """Random scores: with a global threshold a random mask whose layers keep about the same density."""

    name = "random"
    title = "Random"
    citation = "Liu et al.: The unreasonable effectiveness of random pruning. ICLR 2022, arXiv 2202.02643"
    equation = "S_j ~ U(0, 1), drawn on the CPU from (seed, round)"

    def score(self, problem: Problem) -> dict[str, Tensor]:
        source = generator(problem.seed, problem.round)
        return {
            name: torch.rand(weight.shape, generator=source, dtype=torch.float64).to(problem.device)
            for name, weight in problem.prunable.items()
        }
