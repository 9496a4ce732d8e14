"""The plain forward pass, which keeps the local coefficient of every non-linear node."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.errors import InvalidInput
from pathex.graph import Graph, Interpreter, Node
from pathex.paths2.lowering import lowered
from pathex.paths2.moments import Moments, finish, merge, moments_of
from pathex.paths2.weights import Weights

__all__ = ["ArgMax", "Factors", "Gate", "Record", "Recording", "Slope", "Smooth", "calibrate", "record"]

Smooth = Literal["secant", "tangent", "mixed"]
Statistics = Sequence[Moments] | Literal["batch", "running"]


@dataclass(frozen=True)
class Gate:
    """Local slope at each unit: 1 where `open` (bytes), elsewhere `slope`, a number or a tensor that broadcasts."""

    open: Tensor
    slope: float | Tensor = 0.0


@dataclass(frozen=True)
class ArgMax:
    """The route through a max pool: for each output the flat index of the winning input in its channel."""

    indices: Tensor


@dataclass(frozen=True)
class Slope:
    """A coefficient at each unit, which broadcasts: `forward` on the way and `backward`, if another, on the way back."""

    forward: Tensor
    backward: Tensor | None = None


@dataclass(frozen=True)
class Factors:
    """The recorded operands, in their order, of a product of several that the input reaches."""

    operands: tuple[Tensor, ...]


@dataclass(frozen=True)
class Recording:
    """What a recorded forward pass leaves.

    Attributes:
        output: Output of the network, ``(N, ...)``.
        tape: The coefficient of every non-linear node, and the value of every decision.
        statistics: The moments that every BatchNorm used, in the order of the calls.
    """

    output: Tensor
    tape: dict[Node, Any]
    statistics: Sequence[Moments]


@dataclass(eq=False)
class _NextNorm(Exception):
    moments: tuple[Tensor, Tensor, int]
    stored: Moments | None


RECORD: dict[str, Callable[["Record", Node], Any]] = {}


class Record(Interpreter):
    """Runs the network and keeps coefficients.

    Args:
        graph: A lowered graph.
        weights: Its tensors.
        statistics: What BatchNorm uses: moments in the order of the calls, ``running`` for the stored ones, ``batch`` for
            the biased moments of what reaches it.
        smooth: The coefficient of smooth activations.
        keeps: Whether coefficients are kept.
        to_next_norm: Whether the pass ends at the first BatchNorm whose moments are not given.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        statistics: Statistics = "batch",
        smooth: Smooth = "secant",
        *,
        keeps: bool = True,
        to_next_norm: bool = False,
    ) -> None:
        super().__init__(graph, weights, weights.dtype)
        self.statistics, self.smooth, self.keeps, self.to_next_norm = statistics, smooth, keeps, to_next_norm
        self.tape: dict[Node, Any] = {}
        self.moments: list[Moments] = []

    def visit(self, node: Node) -> Any:
        if node.op == "batch_norm" and node in self.graph.dependent:
            return self._batch_norm(node)
        if not self.keeps or node not in self.graph.dependent:
            return self.plain(node)
        if node not in self.graph.carried:
            value = self.plain(node)
            if any(user in self.graph.carried or user not in self.graph.dependent for user in self.graph.users[node]):
                self.tape[node] = value
            return value
        rule = RECORD.get(node.op)
        return self.plain(node) if rule is None else rule(self, node)

    def keep(self, node: Node, coefficient: Any) -> None:
        """Keep the coefficient of a node.

        Args:
            node: The node.
            coefficient: The coefficient.
        """
        self.tape[node] = coefficient

    def _batch_norm(self, node: Node) -> Tensor:
        x: Tensor = self(node["input"])
        mean, var = self(node["running_mean"]), self(node["running_var"])
        stored = None if mean is None or var is None else Moments(mean, var)
        number = len(self.moments)
        if self.statistics == "running" and stored is not None:
            moments = stored
        elif not isinstance(self.statistics, str) and number < len(self.statistics):
            moments = self.statistics[number]
        elif self.to_next_norm:
            raise _NextNorm(moments_of(x), stored)
        else:
            moments = finish(moments_of(x), stored)
        self.moments.append(moments)
        weight, bias = self(node["weight"]), self(node["bias"])
        return F.batch_norm(x, moments.mean.to(x), moments.var.to(x), weight, bias, False, 0.0, node["eps"])


def rule(*ops: str) -> Callable[[Callable[[Record, Node], Any]], Callable[[Record, Node], Any]]:
    """Register what a recorded pass does at a node.

    Args:
        *ops: Names of operators.

    Returns:
        A decorator.
    """

    def register(function: Callable[[Record, Node], Any]) -> Callable[[Record, Node], Any]:
        RECORD.update(dict.fromkeys(ops, function))
        return function

    return register


def record(
    graph: Graph,
    weights: Weights,
    *inputs: Tensor,
    statistics: Statistics = "batch",
    smooth: Smooth = "secant",
) -> Recording:
    """Read the plain forward pass and keep the coefficient of every non-linear node.

    Args:
        graph: The network.
        weights: Its tensors.
        *inputs: What it gets: images ``(N, ...)``.
        statistics: What BatchNorm uses: moments in the order of the calls, ``running`` for the stored ones, ``batch`` for
            the biased moments of what reaches it.
        smooth: The coefficient of a smooth activation phi with phi(0) = 0: ``secant`` phi(x) / x, ``tangent`` phi'(x),
            or ``mixed``: the secant on the way and the tangent on the way back.

    Returns:
        Output, tape and statistics.

    Raises:
        InvalidInput: If ``statistics`` or ``smooth`` is not known.
    """
    if isinstance(statistics, str) and statistics not in ("batch", "running"):
        raise InvalidInput(f"unknown calibration {statistics!r}. Known: batch, running")
    if smooth not in get_args(Smooth):
        raise InvalidInput(f"unknown smooth {smooth!r}. Known: {', '.join(get_args(Smooth))}")
    reading = Record(lowered(graph), weights, statistics, smooth)
    with torch.no_grad():
        output = reading.run(*(_read(x, weights.dtype) for x in inputs))
    return Recording(output, reading.tape, reading.moments)


Each = Callable[[Sequence[tuple[Tensor, ...]], Callable[[tuple[Tensor, ...]], Any]], list[Any]]


def calibrate(
    graph: Graph, weights: Weights, *inputs: Tensor, chunk: int | None = None, each: Each | None = None
) -> Sequence[Moments]:
    """Mean and biased variance of what reaches each BatchNorm, over all images together, layer after layer.

    Every layer sees the outputs of the layers before it normalised by their own calibrated moments. The network's
    stored statistics are neither used nor changed.

    Args:
        graph: The network.
        weights: Its tensors.
        *inputs: Calibration images ``(N, ...)``.
        chunk: Images in memory at a time. None runs one forward pass with all of them; a number bounds memory and costs
            one partial forward pass for each BatchNorm call, with the same result up to rounding.
        each: From chunks and a function to its results for each of them, in order; None: one after another.

    Returns:
        Moments by BatchNorm call.
    """
    graph = lowered(graph)
    inputs = tuple(_read(x, weights.dtype) for x in inputs)
    with torch.no_grad():
        if chunk is None or chunk >= len(inputs[0]):
            whole = Record(graph, weights, keeps=False)
            whole.run(*inputs)
            return whole.moments
        chunks = list(zip(*(x.split(chunk) for x in inputs), strict=True))
        known: list[Moments] = []
        while True:
            step = partial(_next_norm, graph, weights, known)
            found = [step(part) for part in chunks] if each is None else each(chunks, step)
            reached = [part for part in found if part is not None]
            if not reached:
                return known
            total, stored = reached[0]
            for part, _ in reached[1:]:
                total = merge(total, part)
            known.append(finish(total, stored))


def _next_norm(
    graph: Graph, weights: Weights, known: Sequence[Moments], part: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, Tensor, int], Moments | None] | None:
    """What reaches the first BatchNorm that is not known yet, and the statistics that it keeps."""
    try:
        Record(graph, weights, known, keeps=False, to_next_norm=True).run(*part)
    except _NextNorm as reached:
        return reached.moments, reached.stored
    return None


def _read(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x
