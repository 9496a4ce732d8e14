"""NTK-SAP, aligned with the spectrum of the Neural Tangent Kernel."""

import contextlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pathex.errors import UnsupportedOperation
from pathex.graph import Images, Tensors, concatenated, each, tensors_in
from pathex.scores.jacobian import differentiable_twice, gradients
from pathex.scores.kept import KeptLayers, one_thread
from pathex.scores.method import ModelMethod
from pathex.scores.model_reader import ModelReader
from pathex.scores.options import Count, Positive, Redraw
from pathex.scores.problem import Problem, calibration_chunk, entries_of_image, generator, normal

Inputs = Literal["normal", "data"]
_INPUTS, _DIRECTION = 1, 2  # streams of random numbers of a round beside that of the weights

_TWICE = "ntk-sap with exact=True differentiates twice, which an operation of the network does not allow"


def _summed(reader: ModelReader, inputs: Inputs, epsilon: float | None, draws: int) -> dict[str, Tensor]:
    """The derivatives of R by the mask, over all draws of the round; without epsilon of the exact limit."""
    sums = {name: torch.zeros_like(weight) for name, weight in reader.weights().items()}
    # The limit is differentiated twice, which kernels are not.
    layers = None if epsilon is None or reader.calibration == "train" else reader.kept_layers()
    for draw in range(draws):
        drawn = _drawn(reader, inputs, (reader.problem.round - 1) * draws + draw + 1)
        part = _Draw(drawn, epsilon, layers).part
        scored = reader.problem.processes.sum_over(drawn.batches(labels=False), part)
        for name, derivative in scored.items():
            sums[name] += derivative
    return sums


def _drawn(reader: ModelReader, inputs: Inputs, number: int) -> ModelReader:
    """The reader of one draw: its own random stream and its own inputs."""
    problem = reader.problem
    reader.fixed()  # looks at the given images, and warns, once for all rounds
    entries_of_image(problem, reader.output)  # counts once
    if inputs == "data":
        return replace(reader, problem=replace(problem, round=number))
    source = generator(problem.seed, number, _INPUTS)
    batches = [(_normal(x.to(problem.dtype), source), None) for x, _ in problem.batches]
    memo = {key: known for key, known in problem.memo.items() if key != "images"}
    return replace(reader, problem=replace(problem, batches=batches, round=number, memo=memo))


def _normal(images: Images, source: torch.Generator) -> Images:
    """Standard normal images, drawn one after another: the same ones whatever the batches."""
    return concatenated([each(image, lambda part: normal(part, source)) for image in images.split(1)])


def _direction(reader: ModelReader) -> dict[str, Tensor]:
    """A standard normal direction in the space of the kept weights."""
    problem = reader.problem
    source = generator(problem.seed, problem.round, _DIRECTION)
    drawn = {name: torch.randn(p.shape, dtype=torch.float64, generator=source) for name, p in problem.prunable.items()}
    return problem.masked(drawn, reader.precision)


class _Draw:
    """The network of one draw, and the direction in which its weights are moved."""

    def __init__(self, reader: ModelReader, epsilon: float | None, layers: KeptLayers | None) -> None:
        self.reader, self.epsilon, self.layers = reader, epsilon, layers
        self.weights, self.other, self.direction = reader.weights(), reader.other(), _direction(reader)
        self.statistics = self._statistics()

    def _statistics(self) -> Any:
        reader, tensors, images = self.reader, {**self.other, **self.weights}, self.reader.problem.images
        whole = reader.calibration == "batch" and len(images) <= reader.calibration_images
        if self.layers is None or not whole or calibration_chunk(reader.problem, images, reader.output) is not None:
            return reader.statistics(tensors)
        if len(next(reader.batches(labels=False))[0]) == len(images):
            return "batch"  # of the first pass itself
        return reader.kept_forward(self.layers, tensors, "batch").recording(*tensors_in(images)).statistics

    def part(self, batch: tuple[Images, Any]) -> dict[str, Tensor]:
        """The derivatives of R of a batch by the mask."""
        with torch.enable_grad():
            if self.epsilon is not None:
                with contextlib.nullcontext() if self.layers is None else one_thread():
                    return self._difference(batch[0], self.epsilon)
            with differentiable_twice(_TWICE):
                return self._limit(batch[0])

    def _outputs(self, x: Images, leaves: Tensors) -> Tensor:
        tensors = {**self.other, **leaves}
        if self.layers is None:
            return self.reader.forward(x, tensors, self.statistics)
        reading = self.reader.kept_forward(self.layers, tensors, self.statistics)
        outputs = reading.run(*tensors_in(x))
        if self.statistics == "batch":
            self.statistics = reading.moments
        return outputs

    def _difference(self, x: Images, epsilon: float) -> dict[str, Tensor]:
        """By the finite difference of two networks that share the mask."""
        here = {name: weight.detach().requires_grad_() for name, weight in self.weights.items()}
        there = {n: (weight + epsilon * self.direction[n]).requires_grad_() for n, weight in self.weights.items()}
        first = self._outputs(x, here)
        total = (self._outputs(x, there) - first).square().sum()
        at_here, at_there = gradients(total, here, keep=True), gradients(total, there)
        return {n: (here[n] * at_here[n] + there[n] * at_there[n]).detach() for n in here}

    def _limit(self, x: Images) -> dict[str, Tensor]:
        """For an infinitely small step."""
        # With J the Jacobian, t the direction and u = J t, R = u . u. J^T v is linear in v, and its derivative by v
        # along t is J t: a Jacobian-vector product of two backward passes, which needs no rules of forward
        # differentiation. Then dR/dt = 2 J^T u, and dR/dtheta = 2 d(u . J t)/dtheta with u and t held fixed.
        direction = self.direction
        leaves = {name: weight.detach().requires_grad_() for name, weight in self.weights.items()}
        outputs = self._outputs(x, leaves)
        probe = torch.zeros_like(outputs).requires_grad_()
        pulled = gradients(outputs, leaves, weights=probe, create=True)
        (pushed,) = torch.autograd.grad(_dot(pulled, direction), probe)
        pulled = gradients(outputs, leaves, weights=pushed, create=True)
        along, total = _dot(pulled, direction), pushed.square().sum()
        # Second derivatives that torch leaves out in silence: J^T u . t is u . J t, here u . u.
        rounding = 1e-5 * torch.stack([(pulled[name] * direction[name]).abs().sum() for name in pulled]).sum()
        if (along - total).abs() > 1e-3 * total + rounding:
            raise UnsupportedOperation(_TWICE)
        # A network that is linear in its weights has nothing to differentiate here.
        bent = gradients(along, leaves) if along.requires_grad else {}
        return {
            name: 2 * (direction[name] * pulled[name] + (leaf * bent[name] if bent else 0)).detach()
            for name, leaf in leaves.items()
        }


def _dot(a: Tensors, b: Tensors) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


@dataclass(frozen=True, kw_only=True)
class NtkSap(ModelMethod):
    r"""NTK-SAP (Wang, Li, Sun, ICLR 2023): what a connection does to the trace of the NTK.

    Over random weights and inputs,

        R = sum_n || f(theta m; x_n) - f((theta + delta) m; x_n) ||^2,      S_j = | dR / dm_j |,

    with delta normal with standard deviation epsilon, which makes ``R / epsilon^2`` an estimate of the trace of the
    NTK. Weights, inputs and delta are drawn anew in each round. For small epsilon ``R / epsilon^2`` tends to the square
    of the Jacobian-vector product with the unit normal direction of delta; ``exact`` scores with that.

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
    rounding = "up"
    beside = 36

    inputs: Inputs = "normal"
    epsilon: Positive = 0.01
    exact: bool = False
    draws: Count = 1
    redraw: Redraw = True

    def score(self, problem: Problem) -> dict[str, Tensor]:
        reader, step = self.reader(problem), None if self.exact else float(self.epsilon)
        return {name: part.abs_() for name, part in _summed(reader, self.inputs, step, self.draws).items()}
