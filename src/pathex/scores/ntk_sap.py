"""NTK-SAP, aligned with the spectrum of the Neural Tangent Kernel."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pathex.errors import PathexError, UnsupportedOperation
from pathex.paths import Statistics
from pathex.scores.jacobian import gradients
from pathex.scores.method import ModelMethod
from pathex.scores.model_reader import ModelReader
from pathex.scores.options import Count, Positive, Redraw
from pathex.scores.problem import Problem, generator
from pathex.scores.reader import TOTAL

Inputs = Literal["normal", "data"]
_INPUTS, _DIRECTION = 1, 2  # streams of random numbers of a round beside that of the weights

_TWICE = "ntk-sap with exact=True differentiates twice, which an operation of the network does not allow"

# Where R lies within these bounds no derivative that matters under- or overflows float32; beyond them the passes are
# repeated in float64.
_SAFE = (1e-25, 1e30)


def _summed(reader: ModelReader, inputs: Inputs, epsilon: float | None, draws: int) -> tuple[float, dict[str, Tensor]]:
    """R and its derivatives by the mask, over all draws of the round; without epsilon the exact limit."""
    total, sums = 0.0, {name: torch.zeros_like(weight) for name, weight in reader.weights().items()}
    for draw in range(draws):
        drawn = _drawn(reader, inputs, (reader.problem.round - 1) * draws + draw + 1)
        part = _part_of(drawn, epsilon)
        scored = reader.problem.processes.sum_over(drawn.batches(labels=False), part)
        total += float(scored.pop(TOTAL))
        for name, derivative in scored.items():
            sums[name] += derivative
    return total, sums


def _part_of(drawn: ModelReader, epsilon: float | None) -> Callable[[tuple[Tensor, Any]], dict[str, Tensor]]:
    """A function from a batch to R of one draw and its derivatives by the mask."""
    weights, other = drawn.weights(), drawn.other()
    direction = _direction(drawn)
    statistics = drawn.statistics({**other, **weights})

    def part(batch: tuple[Tensor, Any]) -> dict[str, Tensor]:
        with torch.enable_grad():
            if epsilon is None:
                with _differentiable_twice():
                    total, derivatives = _limit(drawn, batch[0], other, weights, direction, statistics)
            else:
                total, derivatives = _difference(drawn, batch[0], other, weights, direction, statistics, epsilon)
        return {TOTAL: total.detach().double(), **derivatives}

    return part


def _drawn(reader: ModelReader, inputs: Inputs, number: int) -> ModelReader:
    """The reader of one draw: its own random stream and its own inputs."""
    problem = reader.problem
    reader.fixed()  # looks at the given images, and warns, once for all rounds
    if inputs == "data":
        return replace(reader, problem=replace(problem, round=number))
    source = generator(problem.seed, number, _INPUTS)
    batches = [(_normal(x.to(problem.dtype), source), None) for x, _ in problem.batches]
    memo = {key: known for key, known in problem.memo.items() if key != "images"}
    return replace(reader, problem=replace(problem, batches=batches, round=number, memo=memo))


def _normal(images: Tensor, source: torch.Generator) -> Tensor:
    """Standard normal images, drawn one after another: the same ones whatever the batches."""
    each = [torch.randn(image.shape, dtype=torch.float64, generator=source).to(images) for image in images]
    return torch.stack(each)


def _direction(reader: ModelReader) -> dict[str, Tensor]:
    """A standard normal direction in the space of the kept weights."""
    problem = reader.problem
    source = generator(problem.seed, problem.round, _DIRECTION)
    drawn = {
        name: torch.randn(own.shape, dtype=torch.float64, generator=source) for name, own in problem.prunable.items()
    }
    return problem.masked(drawn, reader.precision)


def _difference(
    reader: ModelReader,
    x: Tensor,
    other: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    statistics: Statistics,
    epsilon: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """R of a batch by the finite difference, and its derivatives by the mask, which both networks share."""
    here = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    there = {name: (weight + epsilon * direction[name]).requires_grad_() for name, weight in weights.items()}
    moved = reader.forward(x, {**other, **there}, statistics) - reader.forward(x, {**other, **here}, statistics)
    total = moved.square().sum()
    at_here, at_there = gradients(total, here, keep=True), gradients(total, there)
    derivatives = {n: (here[n] * at_here[n] + there[n] * at_there[n]).detach() for n in weights}
    return total, derivatives


def _limit(
    reader: ModelReader,
    x: Tensor,
    other: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    statistics: Statistics,
) -> tuple[Tensor, dict[str, Tensor]]:
    """R of a batch for an infinitely small step, and its derivatives by the mask."""
    # With J the Jacobian, t the direction and u = J t, R = u . u. J^T v is linear in v, and its derivative by v along t
    # is J t: a Jacobian-vector product of two backward passes, which needs no rules of forward differentiation. Then
    # dR/dt = 2 J^T u, and dR/dtheta = 2 d(u . J t)/dtheta with u and t held fixed.
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    outputs = reader.forward(x, {**other, **leaves}, statistics)
    probe = torch.zeros_like(outputs).requires_grad_()
    pulled = gradients(outputs, leaves, weights=probe, create=True)
    (pushed,) = torch.autograd.grad(_dot(pulled, direction), probe)
    pulled = gradients(outputs, leaves, weights=pushed, create=True)
    along = _dot(pulled, direction)
    _check_second(along, pushed, pulled, direction)
    # A network that is linear in its weights has nothing to differentiate here.
    bent = gradients(along, leaves) if along.requires_grad else {}
    derivatives = {
        name: 2 * (direction[name] * pulled[name] + (leaf * bent[name] if bent else 0)).detach()
        for name, leaf in leaves.items()
    }
    return pushed.square().sum(), derivatives


@contextlib.contextmanager
def _differentiable_twice() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if any(phrase in str(error) for phrase in ("not implemented", "differentiate twice", "not have been used")):
            raise UnsupportedOperation(f"{_TWICE} ({str(error).strip().splitlines()[0]})") from error
        raise


def _check_second(along: Tensor, pushed: Tensor, pulled: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> None:
    """Refuse second derivatives that torch leaves out in silence: ``J^T u . t`` is ``u . J t``, here ``u . u``."""
    rounding = 1e-5 * torch.stack([(pulled[name] * direction[name]).abs().sum() for name in pulled]).sum()
    total = pushed.square().sum()
    if (along - total).abs() > 1e-3 * total + rounding:
        raise UnsupportedOperation(_TWICE)


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


@dataclass(frozen=True, kw_only=True)
class NtkSap(ModelMethod):
    r"""NTK-SAP (Wang, Li, Sun, ICLR 2023): what a connection does to the trace of the NTK.

    Over random weights and inputs,

        R = sum_n || f(theta m; x_n) - f((theta + delta) m; x_n) ||^2,      S_j = | dR / dm_j |,

    with delta normal with standard deviation epsilon, which makes ``R / epsilon^2`` an estimate of the trace of the
    NTK. Weights, inputs and delta are drawn anew in each round. For small epsilon ``R / epsilon^2`` tends to the square
    of the Jacobian-vector product with the unit normal direction of delta; ``exact`` scores with that.

    Reads no data but their shape. Published rounds: 100.

    Attributes:
        inputs: ``normal``: standard normal inputs of the images' shape and number, as published; ``data``: the pruning
            set.
        epsilon: Standard deviation of the perturbation, as published.
        exact: Whether it scores with the limit of small epsilon, by Jacobian-vector products.
        draws: Weights, inputs and perturbations drawn in each round.
        calibration: As in other methods, of the inputs of the round.
        redraw: As in other methods; False: the model's own weights.
    """

    name = "ntk-sap"
    title = "NTK-SAP, aligned with the spectrum of the Neural Tangent Kernel"
    citation = (
        "Wang, Li, Sun: NTK-SAP: improving neural network pruning by aligning training dynamics. ICLR 2023, "
        "arXiv 2304.02840"
    )
    equation = (
        "S_j = |dR/dm_j|, R = sum_n ||f(theta m; x_n) - f((theta + delta) m; x_n)||^2, "
        "delta ~ N(0, epsilon^2), weights theta and inputs x_n ~ N(0, 1) drawn each round"
    )
    rounds = 100
    beside = 36

    inputs: Inputs = "normal"
    epsilon: Positive = 0.01
    exact: bool = False
    draws: Count = 1
    redraw: Redraw = True

    def score(self, problem: Problem) -> dict[str, Tensor]:
        reader, step = self.reader(problem), None if self.exact else float(self.epsilon)
        total, scores = _summed(reader, self.inputs, step, self.draws)
        if reader.precision != torch.float64 and not _SAFE[0] < total < _SAFE[1]:
            total, scores = _summed(reader.in_float64(), self.inputs, step, self.draws)
        if not math.isfinite(total):
            raise PathexError(f"ntk-sap: the change of the outputs is {total} in float64; the network overflows")
        return {name: score.abs() for name, score in scores.items()}
