r"""NTK-SAP (Wang, Li, Sun, ICLR 2023): what a connection does to the trace of the NTK, over random weights and inputs.

    R = sum_n || f(theta m; x_n) - f((theta + delta) m; x_n) ||^2,      S_j = | dR / dm_j |,

with delta normal with standard deviation epsilon, which makes ``R / epsilon^2`` an estimate of the trace of the NTK.
Weights, inputs and delta are drawn anew in each round. For small epsilon ``R / epsilon^2`` tends to the square of the
Jacobian-vector product with the unit normal direction of delta; ``exact`` scores with that.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pathex.errors import InvalidInput, PathexError, UnknownName, UnsupportedOperation
from pathex.paths import Statistics
from pathex.scores._jacobian import gradients
from pathex.scores._method import Card, Method
from pathex.scores._problem import generator
from pathex.scores._reader import OPTIONS, READING, TOTAL, ModelReader

__all__ = ["METHOD"]

Inputs = Literal["normal", "data"]
_INPUTS, _DIRECTION = 1, 2  # streams of random numbers of a round beside that of the weights

_TWICE = "ntk-sap with exact=True differentiates twice, which an operation of the network does not allow"

# Where R lies within these bounds no derivative that matters under- or overflows float32; beyond them the passes are
# repeated in float64.
_SAFE = (1e-25, 1e30)


def _score(
    reader: ModelReader, *, inputs: Inputs = "normal", epsilon: float = 0.01, exact: bool = False, draws: int = 1
) -> dict[str, Tensor]:
    if inputs not in get_args(Inputs):
        raise UnknownName("inputs", inputs, get_args(Inputs))
    if isinstance(epsilon, bool) or not isinstance(epsilon, Real) or not 0 < epsilon < math.inf:
        raise InvalidInput(f"epsilon must be a positive number, not {epsilon!r}")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise InvalidInput(f"draws must be an integer of at least 1, not {draws!r}")
    step = None if exact else float(epsilon)
    total, scores = _summed(reader, inputs, step, draws)
    if reader.precision != torch.float64 and not _SAFE[0] < total < _SAFE[1]:
        total, scores = _summed(reader.in_float64(), inputs, step, draws)
    if not math.isfinite(total):
        raise PathexError(f"ntk-sap: the change of the outputs is {total} in float64; the network overflows")
    return {name: score.abs() for name, score in scores.items()}


def _summed(reader: ModelReader, inputs: Inputs, epsilon: float | None, draws: int) -> tuple[float, dict[str, Tensor]]:
    """R and its derivatives by the mask, over all draws of the round; without epsilon the exact limit."""
    total, sums = 0.0, {name: torch.zeros_like(weight) for name, weight in reader.weights().items()}
    for draw in range(draws):
        drawn = _drawn(reader, inputs, (reader.problem.round - 1) * draws + draw + 1)
        part = _part_of(drawn, epsilon)
        scored = reader.problem.processes.summed(drawn.batches(labels=False), part)
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


METHOD = Method(
    Card(
        name="ntk-sap",
        title="NTK-SAP, aligned with the spectrum of the Neural Tangent Kernel",
        citation="Wang, Li, Sun: NTK-SAP: improving neural network pruning by aligning training dynamics. ICLR 2023, "
        "arXiv 2304.02840",
        equation="S_j = |dR/dm_j|, R = sum_n ||f(theta m; x_n) - f((theta + delta) m; x_n)||^2, "
        "delta ~ N(0, epsilon^2), weights theta and inputs x_n ~ N(0, 1) drawn each round",
        summed="summed over inputs, outputs and draws of the round; the absolute value is taken once, at the end",
        needs="nothing",
        batchnorm="constants calibrated on the inputs of the round through the masked, redrawn network, the same ones "
        "for both passes (calibration='batch', as released, with the biased variance), stored ('running'), or the "
        "statistics of each batch and each pass ('train')",
        rounds=100,
        cost="3 forward passes (one without gradient) and 2 backward passes for each draw; exact: 2 forward and 4 "
        "backward passes. Memory: activations of one micro-batch twice, weights three times",
        holds_for="any network (exact: that can be differentiated twice). Of piecewise-linear activations the limit "
        "leaves out what the finite difference counts: gates that flip within the step, which move the kernel by as "
        "much as the step does. On smooth networks both agree up to epsilon",
        differences="the released code draws Kaiming-normal weights, gammas of one and betas of zero (here each "
        "weight's own standard deviation, or redraw=function; other parameters stay), new weights and perturbation "
        "for each batch of 256 (here for each draw), leaves the model with the drawn weights, and its CIFAR-10 script "
        "runs 20 rounds of 5 draws (rounds=20, draws=5)",
        checked="a written-out mask to 1e-9 in float64 and its central differences; exact by torch.func.jvp to "
        "1e-10; the difference converges to it in proportion to epsilon, once no gate flips",
        options={
            "inputs": "normal (default): standard normal inputs of the images' shape and number, as published; data: "
            "the pruning set",
            "epsilon": "standard deviation of the perturbation (default 0.01, as published)",
            "exact": "True scores with the limit of small epsilon, by Jacobian-vector products (default False)",
            "draws": "weights, inputs and perturbations drawn in each round (default 1)",
            **OPTIONS,
            "calibration": "batch (default): BatchNorm uses mean and biased variance of the masked network on the "
            "inputs of the round; running: the stored statistics; train: the statistics of each batch",
            "redraw": "True (default) draws normal weights with each tensor's own standard deviation every round "
            "(seeded by seed and round), or a function (name, tensor, generator) -> tensor; False: the model's own",
        },
    ),
    _score,
    {**READING, "redraw": True},
    reader=ModelReader,
    beside=36,
)
