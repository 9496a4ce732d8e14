"""A network as a linear map of its input: with recorded coefficients, or with every gate open."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pathex.errors import InvalidInput, UnsupportedOperation, check_name
from pathex.graph import Graph, Images, Inputs, Interpreter, Node, arguments, each, tensors_in
from pathex.paths.moments import Moments
from pathex.paths.origins import Origins
from pathex.paths.recording import LINEAR, register
from pathex.paths.weights import Call, Weights, call_of, weigh

Coefficients = Literal["plain", "squared", "ones", "absolute", "connected"]
PerSample = Literal["refuse", "one"]
Pools = Literal["sum", "max"]
NO_PATH = "no path from the input reaches the output through operations that can be read"

rule = partial(register, LINEAR)
"""Registers what a linear reading does at a node."""


class Linear(Interpreter):
    """Additive constants count zero, weights and other factors are coefficients of the paths that pass.

    Read is a lowered graph, with the coefficients of a ``tape``; without one every gate is open. The words are those of
    `replay` and `replay_open`, and ``connected``: coefficients are 1 where they are not zero.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        tape: Mapping[Node, Any] | None,
        statistics: Sequence[Moments] | Literal["running"] = "running",
        coefficients: Coefficients = "squared",
        *,
        pools: Pools = "sum",
        per_sample: PerSample = "refuse",
    ) -> None:
        super().__init__(graph, weights, weights.dtype)
        check_name("coefficients", coefficients, get_args(Coefficients))
        check_name("pools", pools, get_args(Pools))
        check_name("per_sample", per_sample, get_args(PerSample))
        if isinstance(statistics, str):
            check_name("statistics", statistics, ("running",))
        self.weights, self.tape, self.statistics = weights, tape, statistics
        self.coefficients, self.pools, self.per_sample = coefficients, pools, per_sample
        scored = bool(weights.scores) and torch.is_grad_enabled()
        self.anchor = torch.zeros((), requires_grad=True) if scored else None
        self.origins = origins_of(graph, weights.prunable)
        self.numbers = _numbers(graph)
        self.values_only = False
        self.present: dict[Node, Tensor] = {}

    def run(self, *inputs: Tensor) -> Any:
        """The value of the output."""
        self.inputs, self.present = inputs, {}
        return super().run(*inputs)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What is run: no decisions, which are recorded."""
        return self.graph.carried_path

    @property
    def opened(self) -> bool:
        """Whether every gate is open."""
        return self.tape is None

    def visit(self, node: Node) -> Any:
        """What the rule of a node's operator makes of it."""
        if node not in self.graph.carried:  # what only the form of the input decides
            return self.plain(node)
        found = LINEAR.get(node.op)
        if found is None:
            raise self.unsupported(node)
        return found(self, node)

    def __call__(self, argument: Any) -> Any:
        """The value of an argument, of a decision that of the recorded pass."""
        if isinstance(argument, Node) and argument in self.graph.dependent and argument not in self.graph.carried:
            return self.decided(argument)
        return super().__call__(argument)

    def decided(self, node: Node) -> Any:
        """The value of a decision in the recorded pass; where every gate is open one that lets through, or an error."""
        if self.tape is None:
            if node.shape is None or node.dtype not in (torch.bool, self.dtype):
                raise self.unsupported(node, "it decides by values that this reading does not have")
            self.open_per_sample(node)
            size = (len(self.inputs[0]), *node.shape[1:]) if node.batched else node.shape
            return torch.ones(size, dtype=self.dtype, device=self.device)
        value = self.values[node] if node.op == "input" else self.tape[node]
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def zeros(self, argument: Any) -> Tensor:
        """Zeros in the form of a constant."""
        return torch.zeros_like(self(argument), dtype=self.dtype)

    def beside(self, argument: Any) -> Tensor:
        """What a constant that stands beside what the input reaches (a class token) brings to the paths: nothing."""
        return self.zeros(argument)

    # -- coefficients --------------------------------------------------------------------------------------------------

    def coefficient(self, value: Any) -> Any:
        """How a fixed coefficient (a number, or a tensor: a filter, a scale) enters this reading."""
        if self.coefficients == "plain":
            return value
        if self.coefficients == "connected":
            return (value != 0).to(self.dtype) if isinstance(value, Tensor) else float(value != 0)
        if self.coefficients == "squared":
            return value * value
        return abs(value)

    def slope(self, value: Any) -> Any:
        """How the slope of a gate, a number or a tensor, enters this reading."""
        return value if self.coefficients == "plain" else value * value

    def open_per_sample(self, node: Node) -> None:
        """Refuse a node whose coefficients belong to a sample, where every gate is open, unless they count 1."""
        if self.per_sample == "refuse":
            why = "its coefficients depend on the sample and have no open reading; per_sample='one' reads them as 1"
            raise self.unsupported(node, why)

    def passes(self, x: Tensor, node: Node) -> Tensor:
        """What an open reading lets through a function whose coefficient belongs to a sample."""
        self.open_per_sample(node)
        alone = "softmax" in node.op and x.shape[node["dim"]] == 1  # which is constant
        scale = self.coefficients != "connected" and _divides_by_norm(self.graph, node)
        return x * 0 if self.values_only or alone or scale else x

    def joined(self, node: Node, terms: Sequence[Tensor]) -> Tensor:
        """What a product of several factors passes on of what the paths of each in turn bring: the sum."""
        return sum(terms[1:], start=terms[0])

    def scale(self, node: Node) -> Tensor | None:
        """The coefficient of a BatchNorm for each channel ``(C,)``, without its weight; None counts 1."""
        if self.coefficients in ("ones", "connected"):
            return None
        if self.statistics == "running":
            var = self(node["running_var"])
        elif self.numbers[node] < len(self.statistics):
            var = self.statistics[self.numbers[node]].var
        else:
            raise self.unsupported(node, f"moments of {len(self.statistics)} BatchNorm calls were given")
        if var is None:
            raise self.unsupported(node, "it keeps no statistics; use calibration='batch'")
        return self.coefficient((var + node["eps"]).rsqrt()).to(self.dtype)

    def affine(self, weight: Any) -> Tensor | None:
        """The coefficient that the weight of a normalisation is: a mask on it, where normalisations count 1."""
        if weight is None:
            return None
        value: Tensor = self(weight)
        return (value != 0).to(self.dtype) if self.coefficients == "ones" else self.coefficient(value)

    # -- weights -------------------------------------------------------------------------------------------------------

    def weighed(self, node: Node, x: Tensor, argument: Any, call: Call, scale: Tensor | None = None) -> Tensor:
        """What arrives times a weight (its node) with scaled rows, whose score is taken up in the backward pass."""
        origin = self.origins.of_weight(argument)
        if origin is not None and not any(name in self.weights.scores for name in origin.names):
            origin = None

        def made() -> Tensor:
            weight = self.effective(argument)
            return weight if scale is None else weight * scale.view(-1, *[1] * (weight.dim() - 1))

        def take(product: Tensor) -> None:
            assert origin is not None
            for name, part in self.origins.split(origin, product).items():
                if name in self.weights.scores:
                    self.weights.add(name, part)

        return self.product(node, x, call, made, None if origin is None else take)

    def product(
        self, node: Node, x: Tensor, call: Call, made: Callable[[], Tensor], take: Callable[[Tensor], None] | None
    ) -> Tensor:
        """What arrives times the weight that is made, whose product with its gradient is taken."""
        return weigh(x, call, made, self.anchor, take)

    def by_weight(self, node: Node, x: Tensor, weight: Any, form: Sequence[int]) -> Tensor:
        """What arrives times the weight of a normalisation (its node, or None), broadcast in the shape ``form``."""
        if weight is None:
            return x
        if self.origins.origin(weight) is not None:
            return self.weighed(node, x, weight, call_of(node, lambda x, w: x * w.view(form)))
        affine = self.affine(weight)
        return x if affine is None else x * affine.view(form)

    def effective(self, argument: Any) -> Tensor:
        """The coefficient that a weight is to a path: a new tensor, or the weight itself."""
        before = dict(self._constants)
        value: Tensor = self.tensors(argument.target) if argument.op == "parameter" else self(argument)
        self._constants = before  # what weights are computed from is as large as they
        value = value.to(self.dtype)
        origin = None if self.origins.direct(argument) else self.origins.origin(argument)
        if origin is None or self.coefficients == "plain":
            return self.coefficient(value)
        own = self.origins.gather(origin, self.weights)
        if self.coefficients == "ones" and not origin.linear:
            return own.abs()
        present = own != 0
        if not origin.aligned:
            assert origin.index is not None
            present |= origin.index.to(value.device) < 0
        if self.coefficients == "connected":
            return ((value != 0) if origin.linear else present).to(value.dtype)
        value = torch.where(present, value, 0)
        return self.coefficient(torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0))

    def scores(self, total: Tensor) -> dict[str, Tensor]:
        """For a sum over outputs the effective weights times its derivatives with respect to them.

        Returns:
            Name to product in the weight's shape; ``theta^2 dR/d(theta^2)`` where weights are squared.

        Raises:
            InvalidInput: If the sum depends on none of the weights.
        """
        if self.anchor is None or not total.requires_grad:
            raise InvalidInput("the output that counts depends on no prunable weight; name another output with output=")
        torch.autograd.grad(total, self.anchor, allow_unused=True)
        return self.weights.take()


def origins_of(graph: Graph, names: tuple[str, ...]) -> Origins:
    """Where the constants of a graph come from, found once for each choice of parameters."""
    known: dict[tuple[str, ...], Origins] = graph.memo.setdefault("origins", {})
    if names not in known:
        known[names] = Origins(graph, names)
    return known[names]


def _numbers(graph: Graph) -> dict[Node, int]:
    """Number of each BatchNorm in the order of the calls."""
    if "norms" not in graph.memo:
        norms = [node for node in graph.path if node.op == "batch_norm" and node in graph.dependent]
        graph.memo["norms"] = {node: number for number, node in enumerate(norms)}
    return graph.memo["norms"]


def _divides_by_norm(graph: Graph, node: Node) -> bool:
    """Whether a function is the scale of a normalisation in primitives: as in the layers, no path where it counts 1."""
    if node.op not in ("reciprocal", "rsqrt"):
        return False
    while node.op not in ("square", "pow", "abs") and node not in graph.inputs and graph.role(node) != "weighted":
        node = next(source for source in node.inputs if source in graph.carried)
    return node.op in ("square", "pow", "abs")


def inputs_of(x: Any) -> Inputs:
    """What a network gets, in any form that `trace` takes."""
    return Inputs(*arguments(x))


def run_linear(reading: Linear, x: Images) -> Tensor:
    """The output of a reading of what the network gets; `UnsupportedOperation` if no path reaches it."""
    if reading.graph.output not in reading.graph.carried:
        raise UnsupportedOperation(NO_PATH)
    return reading.run(*tensors_in(each(x, lambda tensor: tensor.to(reading.dtype))))
