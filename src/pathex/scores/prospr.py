"""ProsPr, prospect pruning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from pathex.errors import PathexError
from pathex.paths import Statistics
from pathex.scores.loss import hessian_product, kept_part, loss_gradient
from pathex.scores.method import LossMethod
from pathex.scores.model_reader import Leaves, ModelReader
from pathex.scores.options import Allowed, Natural, Positive, is_number
from pathex.scores.problem import Batch, Problem

State = dict[str, Tensor]
Parts = Sequence[ModelReader]


def _parts(reader: ModelReader, count: int) -> list[ModelReader]:
    """The pruning set cut into successive parts; with less to cut than parts, what there is in turn."""
    reader.require_labels()
    problem = reader.problem
    pieces: Sequence[Batch] = problem.batches
    if reader.calibration != "train":
        images, labels = problem.images, problem.labels
        assert labels is not None
        pieces = list(zip(images.split(1), labels.split(1), strict=True))
    groups = [pieces[i * len(pieces) // count : (i + 1) * len(pieces) // count] for i in range(count)]
    if len(pieces) < count:
        groups = [[pieces[i % len(pieces)]] for i in range(count)]
    memo = {key: known for key, known in problem.memo.items() if key in {"scales", "footprint"}}
    return [replace(reader, problem=replace(problem, batches=group, memo=dict(memo))) for group in groups]


def _at(state: Mapping[str, Tensor], statistics: Statistics) -> Leaves:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in state.items()}
    return Leaves(leaves, leaves, statistics)


def _descend(parts: Parts, start: State, statistics: Statistics, lr: float, momentum: float) -> list[State]:
    """All parameters before the first step and after each."""
    trajectory = [start]
    velocity = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    for part in parts:
        gradient = kept_part(part.problem, loss_gradient(part, _at(trajectory[-1], statistics)))
        velocity = {name: momentum * velocity[name] + gradient[name] for name in start}
        trajectory.append({name: tensor - lr * velocity[name] for name, tensor in trajectory[-1].items()})
    return trajectory


def _carry_back(
    parts: Parts, trajectory: Sequence[State], effect: State, statistics: Statistics, lr: float, momentum: float
) -> State:
    """From the gradient with respect to the parameters after all steps to that with respect to those before."""
    through = {name: torch.zeros_like(tensor) for name, tensor in effect.items()}  # with respect to the velocity
    instead = ", or first_order=True, which needs none"
    for part, state in zip(reversed(parts), reversed(trajectory), strict=True):
        through = {name: through[name] - lr * effect[name] for name in effect}
        vector = kept_part(part.problem, through)
        product = hessian_product(part, _at(state, statistics), vector, instead=instead)
        effect = {name: effect[name] + product[name] for name in effect}
        through = {name: momentum * tensor for name, tensor in through.items()}
    return effect


@dataclass(frozen=True, kw_only=True)
class ProsPr(LossMethod):
    r"""ProsPr, prospect pruning (Alizadeh et al., ICLR 2022): the effect of a weight on the loss after the first steps.

        w_0 = c * theta,    w_{t+1} = w_t - lr grad L_t(w_t),    S_j = |d L_M(w_M) / d c_j|    at c = mask.

    L_t is the mean loss over the t-th part of the pruning set. The derivative is taken through all M steps. It is
    carried back step by step, ``dL/dw_t = dL/dw_{t+1} - lr H_t dL/dw_{t+1}``, so that no more than one step is in
    memory.

    Attributes:
        steps: Steps of gradient descent before the loss counts, as published; 0 is SNIP on the whole pruning set. Their
            parts are groups of batches as delivered (with fewer batches than parts, the batches in turn), or with
            calibration ``batch`` and ``running`` of images in canonical order.
        lr: Learning rate of the steps.
        momentum: Momentum of the steps.
        first_order: Whether the derivative of the last loss alone is taken, ``|theta dL_M/dw_M|``, as published for
            large networks.
    """

    name = "prospr"
    title = "ProsPr, prospect pruning"
    citation = (
        "Alizadeh, Tailor, Zintgraf, van Amersfoort, Farquhar, Lane, Gal: Prospect pruning: finding trainable "
        "weights at initialization using meta-gradients. ICLR 2022, arXiv 2202.08132"
    )
    equation = "S_j = |d L_M(w_M) / d c_j|, w_0 = c theta, w_{t+1} = w_t - lr grad L_t(w_t), at c = mask"
    beside = 48

    steps: Natural = 3
    lr: Positive = 0.1
    momentum: Annotated[float, Allowed("a number in [0, 1)", lambda value: is_number(value) and 0 <= value < 1)] = 0.0
    first_order: bool = False

    def score(self, problem: Problem) -> dict[str, Tensor]:
        reader = self.reader(problem)
        weights = reader.weights()
        own = {n: p.detach() for n, p in problem.model.named_parameters() if p.is_floating_point()}
        start = {n: p.to(reader.precision) for n, p in own.items()} | reader.other() | weights
        statistics = reader.statistics(start)
        parts = _parts(reader, self.steps + 1)
        trajectory = _descend(parts[:-1], start, statistics, self.lr, self.momentum)
        effect = loss_gradient(parts[-1], _at(trajectory[-1], statistics))
        if not self.first_order:
            effect = _carry_back(parts[:-1], trajectory[:-1], effect, statistics, self.lr, self.momentum)
        scores = {name: (weight * effect[name]).abs() for name, weight in weights.items()}
        if reader.precision == torch.float64 and not all(score.isfinite().all() for score in scores.values()):
            raise PathexError(
                f"prospr: the network diverges within {self.steps} steps of lr={self.lr:g}; allowed: a smaller lr"
            )
        return scores
