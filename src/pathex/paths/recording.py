"""The plain forward pass, which keeps the local coefficient of every non-linear node."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.graph import DECISIONS, Graph, Interpreter, Node, words
from pathex.paths.moments import Moments, finish, moments_of
from pathex.paths.weights import Weights

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
    """A coefficient at each unit, which broadcasts: `forward` on the way; `backward` on the way back, None if alike."""

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
        graph: What was read, lowered.
        output: Output of the network, ``(N, ...)``.
        tape: The coefficient of every non-linear node, and the value of every decision.
        statistics: The moments that every BatchNorm used, in the order of the calls.
    """

    graph: Graph
    output: Tensor
    tape: dict[Node, Any]
    statistics: Sequence[Moments]


Rule = Callable[[Any, Node], Any]
RECORD: dict[str, Rule] = {}
LINEAR: dict[str, Rule] = {}
"""What operators do in linear readings; one that is not there is refused in a recorded pass too."""


def register(table: dict[str, Rule], *ops: str) -> Callable[[Rule], Rule]:
    """Enter a function in a table under the names of some operators."""

    def enter(function: Rule) -> Rule:
        table.update(dict.fromkeys(ops, function))
        return function

    return enter


rule = partial(register, RECORD)
"""Registers what a recorded pass does at a node."""

_DECIDES = DECISIONS | words("to _to_copy getitem sym_size")


class Record(Interpreter):
    """Runs a lowered graph and keeps coefficients; statistics and smooth activations as `record` says."""

    def __init__(
        self, graph: Graph, weights: Weights, statistics: Statistics = "batch", smooth: Smooth = "secant"
    ) -> None:
        super().__init__(graph, weights, weights.dtype)
        self.statistics, self.smooth = statistics, smooth
        self.tape: dict[Node, Any] = {}
        self.moments: list[Moments] = []

    def recording(self, *inputs: Tensor) -> Recording:
        """What a forward pass leaves."""
        with torch.no_grad():
            output = self.run(*inputs)
        return Recording(self.graph, output, self.tape, self.moments)

    def visit(self, node: Node) -> Any:
        """The value of a node; what its rule keeps of it goes to the tape."""
        if node.op == "batch_norm" and node in self.graph.dependent:
            return self._batch_norm(node)
        if node not in self.graph.dependent:
            return self.plain(node)
        if node not in self.graph.carried:
            if node.op not in _DECIDES and any(source in self.graph.carried for source in node.inputs):
                raise self.unsupported(node, f"its result is {node.dtype}")
            value = self.plain(node)
            if any(user in self.graph.carried or user not in self.graph.dependent for user in self.graph.users[node]):
                self.tape[node] = value
            return value
        rule = RECORD.get(node.op)
        if rule is None and node.op not in LINEAR:
            raise self.unsupported(node)
        return self.plain(node) if rule is None else rule(self, node)

    def keep(self, node: Node, coefficient: Any) -> None:
        """Keep the coefficient of a node."""
        self.tape[node] = coefficient

    def _batch_norm(self, node: Node) -> Tensor:
        x: Tensor = self(node["input"])
        mean, var = self(node["running_mean"]), self(node["running_var"])
        stored = None if mean is None or var is None else Moments(mean, var)
        number = len(self.moments)
        if self.statistics == "running" and stored is not None:
            moments = stored
        elif not isinstance(self.statistics, str):
            if number >= len(self.statistics):
                raise self.unsupported(node, f"moments of {len(self.statistics)} BatchNorm calls were given")
            moments = self.statistics[number]
        else:
            moments = finish(self.moments_of(x), stored)
        self.moments.append(moments)
        weight, bias = self(node["weight"]), self(node["bias"])
        mean, var = (each.to(x.device, x.dtype) for each in (moments.mean, moments.var))
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, node["eps"])

    def moments_of(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """Mean and sum of squared deviations of each channel, and how many values it has."""
        return moments_of(x)
