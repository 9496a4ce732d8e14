"""WideTopo."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pathex.graph import Images, Tensors, each
from pathex.paths import Statistics
from pathex.scores.jacobian import differentiable_twice, gradients
from pathex.scores.method import ModelMethod
from pathex.scores.model_reader import ModelReader
from pathex.scores.options import Count, Natural, Positive
from pathex.scores.precision import safely, with_largest
from pathex.scores.problem import Problem, doubt_batches, generator, normal
from pathex.scores.search import State, Target, largest, steps, target_of

_TRACE, _ALIGNMENT, _RESTORED = 21, 22, 23  # streams of random numbers
_NTK = 0.01  # weight of the score of the trace
_DECAY = 5  # powers of ten of the density for an exponent of one
_STEPS = 50  # of a restoration


def _between(first: Target, last: Target, share: float, *, linear: bool = False) -> Target:
    """Weights kept a share of the way, along an exponential or a line."""

    def part(start: int, end: int) -> int:
        # Of a layer that ends with none, half a weight is left, as in an exponential schedule.
        along = start + (end - start) * share if linear else start * (max(end, 0.5) / max(start, 0.5)) ** share
        return end if share == 1 else min(round(along), max(start, end))

    if isinstance(first, Mapping):
        assert isinstance(last, Mapping)
        return {name: part(number, last[name]) for name, number in first.items()}
    assert isinstance(last, int)
    return part(first, last)


def _degrees(values: Tensor) -> Tensor:
    """The product of the sums over an entry's row and over its column; 1 of what has none."""
    if values.dim() < 2:
        return torch.ones_like(values)
    ones = [1] * (values.dim() - 2)
    rows, columns = values.flatten(1).sum(1), values.transpose(0, 1).flatten(1).sum(1)
    return torch.outer(rows, columns).view(*values.shape[:2], *ones)


def restored(mask: Tensors, allowed: Tensors, target: Target, source: torch.Generator) -> dict[str, Tensor]:
    """The mask with weights of the emptiest rows and columns put back, a few at a time."""
    number = {name: int(kept.sum()) for name, kept in mask.items()}
    first: Target = number if isinstance(target, Mapping) else sum(number.values())
    for step in range(1, _STEPS + 1):
        values = {}
        for name, kept in mask.items():
            missing = _degrees((~kept).double()) / _degrees(torch.ones_like(kept, dtype=torch.float64))
            # One number for a kernel, so that whole kernels come back.
            values[name] = torch.where(kept, 2.0, missing + 1e-5 * normal(missing, source))
        mask = largest(values, allowed, _between(first, target, step / _STEPS, linear=True))
    return dict(mask)


def decayed(scores: Tensors, mask: Tensors) -> dict[str, Tensor]:
    """Scores times what makes weights of full rows and columns go first, the more the sparser the network is."""
    kept, total = sum(int(m.sum()) for m in mask.values()), sum(m.numel() for m in mask.values())
    power = -torch.log10(torch.tensor(kept / total, dtype=torch.float64)).item() / _DECAY
    sized = {name: _degrees(kept.to(scores[name])).clamp_min(1) for name, kept in mask.items()}
    return {name: score * mask[name] * sized[name] ** -power for name, score in scores.items()}


def _by_trace(
    reader: ModelReader, x: Images, tensors: Tensors, mask: Tensors, statistics: Statistics, source: torch.Generator
) -> dict[str, Tensor]:
    """``|theta dT / dtheta|``, with the weights that the mask removes left out of the trace T."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    outputs = reader.forward(x, leaves, statistics)
    first = gradients((outputs * normal(outputs, source)).sum(), leaves, create=True)
    kept = {name: grad * mask[name] if name in mask else grad for name, grad in first.items()}
    total = torch.stack([grad.square().sum() for grad in kept.values()]).sum()
    if not total.requires_grad:  # a network that is linear in its weights
        return {name: torch.zeros_like(tensors[name]) for name in mask}
    with differentiable_twice("widetopo differentiates twice, which an operation of the network does not allow"):
        second = gradients(total, leaves)
    return {name: (second[name] * mask[name] * leaves[name].detach()).abs() for name in mask}


def _by_alignment(
    reader: ModelReader, x: Images, tensors: Tensors, mask: Tensors, statistics: Statistics, epsilon: float,
    source: torch.Generator,
) -> dict[str, Tensor]:  # fmt: skip
    """``|dA / dm|`` of the squared mixed difference A along random directions of images and weights."""
    there = each(x, lambda part: part + epsilon * normal(part, source))
    leaves = {name: kept.to(reader.precision).requires_grad_() for name, kept in mask.items()}
    moved = {name: tensors[name] + epsilon * normal(tensors[name], source) for name in mask}
    change = []
    for weights in (moved, tensors):
        masked = {**tensors, **{name: weights[name] * leaf for name, leaf in leaves.items()}}
        change.append(reader.forward(there, masked, statistics) - reader.forward(x, masked, statistics))
    total = (change[0] - change[1]).square().sum() / epsilon**2
    return {name: grad.abs() for name, grad in gradients(total, leaves).items()}


@dataclass(frozen=True, kw_only=True)
class WideTopo(ModelMethod):
    r"""WideTopo (Deng et al., 2026): keep the trace of the NTK and the pull of the weights, in layers that stay wide.

        S_j = (0.01 |theta_j dT/dtheta_j| + |dA/dm_j|) (d_out d_in)^(-c / 5),
        T = || d(v . f) / dtheta ||^2, v ~ N(0, 1),     A = || D_eps f(x + eps xi) - D_eps f(x) ||^2 / eps^2,

    with ``D_eps f = f(theta + eps delta) - f(theta)``, xi and delta normal, d the kept weights of j's row and column
    and c the powers of ten of the density. After ``iterations`` along an exponential, weights of the emptiest rows and
    columns come back until half, then three quarters, of the powers of ten are left, and are scored again.

    Attributes:
        iterations: Rounds of scoring after each restoration, and at first.
        restorations: How often weights come back.
        calibration: What BatchNorm uses: ``batch``, mean and biased variance of the masked network on the calibration
            images, or ``running``, the stored statistics.
        epsilon: Standard deviation of both perturbations.
    """

    name = "widetopo"
    title = "WideTopo"
    citation = (
        "Deng, Cheng, Su, An, Yang, Xia, Zhang, Wang: WideTopo: improving foresight neural network pruning through "
        "training dynamics preservation and wide topologies exploration. Neural Networks 194, 2026"
    )
    equation = (
        "S_j = (0.01 |theta_j dT/dtheta_j| + |dA/dm_j|) (d_out d_in)^(-c/5), T an estimate of the trace of the NTK, A "
        "of the squared mixed derivative of f along x and theta, d the kept weights of row and column, density 10^-c"
    )
    needs = "images"
    trains = True
    beside = 56

    calibration: Literal["batch", "running"] = "batch"
    iterations: Count = 50
    restorations: Natural = 2
    epsilon: Positive = 0.0005

    def score(self, problem: Problem) -> dict[str, Tensor]:
        target, allowed = target_of(problem, self.name), problem.allowed
        doubt_batches(problem, self.output)
        free = {name: int(kept.sum()) for name, kept in allowed.items()}
        whole: Target = free if isinstance(target, Mapping) else sum(free.values())
        state = State({name: kept.to(problem.dtype) for name, kept in allowed.items()})
        for number in steps(problem, self, state, self.iterations * (1 + self.restorations), 1):
            leg, iteration = divmod(number, self.iterations)
            mask, first = {name: kept.bool() for name, kept in state.values.items()}, whole
            if leg:
                first = _between(whole, target, 1 - 2.0**-leg)
                if not iteration:
                    mask = restored(mask, allowed, first, generator(problem.seed, number, _RESTORED))
            scores = decayed(self._scores(problem, mask, number), mask)
            kept = largest(scores, mask, _between(first, target, (iteration + 1) / self.iterations))
            for name, value in state.values.items():
                value.copy_(kept[name])
        return {name: value.clone() for name, value in state.values.items()}

    def _scores(self, problem: Problem, mask: Tensors, number: int) -> dict[str, Tensor]:
        return safely(problem, lambda each: with_largest(self._summed(each, mask, number)))

    def _summed(self, problem: Problem, mask: Tensors, number: int) -> dict[str, Tensor]:
        reader = self.reader(replace(problem, mask=mask))
        weights, other = reader.weights(), reader.other()
        own = {n: p.detach().to(reader.precision) for n, p in problem.model.named_parameters() if p.is_floating_point()}
        tensors = {**own, **other, **weights}
        statistics = reader.statistics({**other, **weights})
        sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for index, (given, _) in enumerate(problem.batches):
            x = given.to(problem.device, reader.precision)
            with torch.enable_grad():
                trace = _by_trace(reader, x, tensors, mask, statistics, generator(problem.seed, number, index, _TRACE))
                source = generator(problem.seed, number, index, _ALIGNMENT)
                pull = _by_alignment(reader, x, {**other, **weights}, mask, statistics, self.epsilon, source)
            for name in sums:
                sums[name] += _NTK * trace[name] + pull[name]
        return sums
