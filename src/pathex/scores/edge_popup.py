"""edge-popup."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pathex.graph import Tensors
from pathex.scores.options import Count
from pathex.scores.problem import Problem
from pathex.scores.search import LossSearch, State, largest, leaves, target_of

_MOMENTUM, _WEIGHT_DECAY = 0.9, 1e-4


@dataclass(frozen=True, kw_only=True)
class EdgePopup(LossSearch):
    r"""edge-popup (Ramanujan et al., CVPR 2020): scores that are trained through the mask of the largest of them.

        m = 1 where |s_j| is among the K largest,   dm_j / d|s_j| = 1 (straight through),
        descends  loss(theta m)  by SGD with momentum;   S_j = |s_j|.

    Scores start uniform within one over the root of the fan-in, and the learning rate falls along a cosine. Published
    with as many weights in each layer as its share (``allocation="layer"``), and weights that are never trained.

    Attributes:
        epochs: Passes over the pruning set, as published.
        batch_size: Images of a step, at most, as released.
    """

    name = "edge-popup"
    title = "edge-popup"
    citation = (
        "Ramanujan, Wortsman, Kembhavi, Farhadi, Rastegari: What's hidden in a randomly weighted neural network? "
        "CVPR 2020, arXiv 1911.13299"
    )
    equation = "S_j = |s_j|, trained to descend loss(theta m), m_j = 1 for the K largest |s_j|, straight through"

    epochs: Count = 100
    batch_size: Count = 128

    def start(self, problem: Problem) -> State:
        def draw(weight: Tensor, source: torch.Generator) -> Tensor:
            uniform = torch.rand(weight.shape, dtype=torch.float64, generator=source) * 2 - 1
            return uniform / math.sqrt(weight[0].numel() or 1)

        values = leaves(problem, draw)
        optimizer = torch.optim.SGD(values.values(), self.lr, _MOMENTUM, weight_decay=_WEIGHT_DECAY)
        return State(values, optimizer)

    def decay(self, epoch: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))

    def relaxed(self, problem: Problem, values: Tensors, source: torch.Generator) -> dict[str, Tensor]:
        sizes = {name: value.abs() for name, value in values.items()}
        kept = largest(sizes, problem.allowed, target_of(problem, self.name))
        return {name: size + (kept[name].to(size) - size.detach()) for name, size in sizes.items()}

    def score(self, problem: Problem) -> dict[str, Tensor]:
        return {name: value.abs() for name, value in super().score(problem).items()}
