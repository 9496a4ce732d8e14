"""Node-path balance."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from pathex.graph import Output
from pathex.paths import PerSample, Use, count_paths
from pathex.scores.method import Method
from pathex.scores.options import Allowed, Share, is_number
from pathex.scores.problem import Problem, generator


def _add_bests(score: Tensor, use: Use, paths: Tensor, alpha: float, beta: float) -> None:
    """Add what the best weight of each unit and kernel is worth."""
    values = use.by_units(paths)
    alive = values > 0
    of_output = (values == values.amax((2, 3), keepdim=True)) & alive
    # An input unit that the best weight of an output unit keeps anyway needs none of its own.
    covered = of_output.any(3, keepdim=True).any(1, keepdim=True)
    of_input = (values == values.amax((1, 3), keepdim=True)) & alive & ~covered
    of_kernel = (values == values.amax(3, keepdim=True)) & alive
    groups, outputs, inputs, _ = values.shape
    units, kept = groups * (outputs + inputs), max(1, int(alive.sum()))
    use.add_to(score, alpha * (of_output.to(score) + of_input.to(score)) / units + beta * of_kernel.to(score) / kept)


@dataclass(frozen=True, kw_only=True)
class NodePath(Method):
    r"""Node-path balance (Pham et al., NeurIPS 2023): keep many input-output paths, and many units that lie on one.

        S_j = alpha N_j / n_units + (1 - alpha) P_j / sum_layer P + beta K_j / n_kept.

    What weight j adds to the published objective of its layer, in the masked network: units of which it is the best
    weight, its part of the paths, and whether it is the best weight of its kernel.

    Attributes:
        alpha: Weight of units against paths, in [0, 1].
        beta: Weight of kernels.
        per_sample: Coefficients that belong to a sample (LayerNorm, attention, gates): ``refuse``, or ``one``: they
            count 1.
        output: Which of several outputs counts: a key or an index; None: the first tensor.
    """

    name = "node-path"
    title = "Node-path balance"
    citation = (
        "Pham, Ta, Liu, Xiang, Le, Wen, Tran-Thanh: Towards data-agnostic pruning at initialization: what "
        "makes a good sparse mask? NeurIPS 2023"
    )
    equation = (
        "S_j = alpha N_j / n_units + (1 - alpha) P_j / sum_layer P + beta K_j / n_kept; P_j paths of the "
        "masked network through j, N_j = 1 if j is the best weight of its output unit, or of an input unit that no "
        "such weight has; K_j = 1 if it is the best of its kernel"
    )
    rounds = 20
    paths = True

    alpha: Share = 0.5
    beta: Annotated[float, Allowed("a number of at least 0", lambda value: is_number(value) and value >= 0)] = 0.1
    per_sample: PerSample = "refuse"
    output: Output = None

    def score(self, problem: Problem) -> dict[str, Tensor]:
        mask = problem.allowed
        counts = count_paths(problem.model, problem.images[:1], mask, per_sample=self.per_sample, output=self.output)
        source, scores = generator(problem.seed, problem.round), {}
        for name, through in counts.through.items():
            # Paths that are equal in number are told apart by chance, else every unit would choose the same weight.
            chance = 1 + 1e-9 * torch.rand(through.shape, dtype=torch.float64, generator=source).to(through)
            scores[name] = (1 - self.alpha) * through / through.sum().clamp_min(torch.finfo(through.dtype).tiny)
            for use in counts.uses[name]:
                _add_bests(scores[name], use, through * chance, self.alpha, self.beta)
        return scores
