"""What of a graph is computed as one: a weighted map with the normalisation, sum and bounds that follow it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pathex.graph import Graph, Interpreter, Node, words
from pathex.sparse.planes import Plan, Window

_FAST = 16  # features of an attention that PyTorch multiplies as fast as fewer
_SAME = words("dropout feature_dropout alpha_dropout feature_alpha_dropout alias detach positive lift_fresh contiguous")


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or a linear layer, and what follows it.

    Attributes:
        name: Path of its module, numbered where it is called again.
        node: Its node.
        source: What it reads.
        result: The node that it computes, which what follows ends in.
        weight: Folded weight ``(outputs, inputs / groups, height, width)``, float32.
        bias: Folded bias ``(outputs,)``, float32.
        window: How its taps lie.
        groups: Groups of channels.
        residual: What is added to it.
        low: Least value of a result.
        high: Largest value.
        plan: Its kept weights.
    """

    name: str
    node: Node
    source: Node
    result: Node
    weight: Tensor
    bias: Tensor
    window: Window
    groups: int
    residual: Node | None
    low: float
    high: float
    plan: Plan

    @property
    def is_linear(self) -> bool:
        """Whether it maps the last dimension rather than planes."""
        return self.node.op == "linear"

    @cached_property
    def channels_last(self) -> Tensor:
        """The weight in the other layout."""
        return self.weight.contiguous(memory_format=torch.channels_last)

    @property
    def density(self) -> float:
        """Kept share of its weights."""
        return self.plan.kept / max(1, self.weight.numel())


@dataclass(frozen=True)
class Features:
    """The features of an attention that matter, as many for each head: which, and those of its values.

    A feature whose key is the same at all positions adds the same to all logits of a query, and one whose query is zero
    nothing: both are left out. A value that is the same at all positions comes out as it is, as shares sum to one.

    Attributes:
        products: Numbers of the features of queries and keys among those of all heads ``(H M,)``.
        values: Numbers of the features of values ``(H M,)``.
        level: What comes out where values do not vary ``(H, D)``.
    """

    products: Tensor
    values: Tensor
    level: Tensor

    @classmethod
    def of(cls, matters: Tensor, varied: Tensor, level: Tensor) -> "Features | None":
        """Those that matter, then others up to a number that is fast; None if these are all or nearly so."""
        most = int(torch.stack([matters, varied]).sum(2).max())
        width = -(-max(most, 1) // _FAST) * _FAST
        if width >= matters.shape[1]:
            return None
        first = ((~each).byte().argsort(dim=1, stable=True)[:, :width] for each in (matters, varied))
        heads = torch.arange(len(matters)).unsqueeze(1) * matters.shape[1]
        products, values = ((heads + each).flatten() for each in first)
        return cls(products, values, level.float())


class Reading:
    """The layers of a graph, and which node stands for which.

    Args:
        graph: The network.
        model: Its module, whose weights are read with zeros where nothing is kept.
        attention: The features that matter of attentions.
    """

    def __init__(self, graph: Graph, model: nn.Module, attention: Mapping[Node, Features]) -> None:
        self.graph, self.attention = graph, attention
        state = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        precise, self._single = (
            Interpreter(graph, lambda n: state[n].detach(), d) for d in (torch.float64, torch.float32)
        )
        precise.device = self._single.device = torch.device("cpu")
        self._precise = precise.constant
        self.reached = frozenset(graph.path)
        self.shapes: dict[int, dict[Node, tuple[int, ...]]] = {}  # of values, by the number of images
        self.layers: dict[Node, Layer] = {}  # by their results
        self.inside: set[Node] = set()  # computed within a layer
        self._names: dict[str, int] = {}
        for node in graph.path:
            if node in graph.dependent and node not in self.inside:
                layer = self._layer(node)
                if layer:
                    self.layers[layer.result] = layer
        del self._precise  # with all weights in float64
        self.nodes = tuple(node for node in graph.path if node not in self.inside and node not in graph.inputs)

    def same(self, node: Node) -> Node:
        """The node whose values a node passes on as they are."""
        while node.op in _SAME and isinstance(node.args[0], Node):
            node = node.args[0]
        return node

    def constant(self, node: Node) -> Any:
        """The float32 value of what no input reaches."""
        return self._single.constant(node)

    def _next(self, node: Node, passed: list[Node]) -> Node | None:
        """The only user of a node; the nodes on the way to it are added to those passed."""
        if node is self.graph.output or len(self.graph.users[node]) != 1:
            return None
        user = self.graph.users[node][0]
        if user.op not in _SAME:
            return user
        passed.append(user)
        return self._next(user, passed)

    def _layer(self, node: Node) -> Layer | None:
        window = _window(node)
        if window is None or not node.batched or not self.graph.dependent.isdisjoint(node.inputs[1:]):
            return None
        weight: Any = node["weight"]
        value: Tensor = self._precise(weight)
        if node.op == "linear":
            value = value.unsqueeze(-1).unsqueeze(-1)
        bias = torch.zeros(len(value), dtype=torch.float64)
        if isinstance(node["bias"], Node):
            bias = self._precise(node["bias"])
        result, residual, bounds = node, None, (-math.inf, math.inf)
        passed: list[Node] = []
        following = self._next(result, passed)
        if following is not None and self._folds(following, node):
            scale, shift = self._normalisation(following)
            value, bias = value * scale.view(-1, 1, 1, 1), bias * scale + shift
            result = self._step(result, following, passed)
            following = self._next(result, passed)
        if following is not None and (other := self._added(following, result)) is not None:
            residual = other
            result = self._step(result, following, passed)
            following = self._next(result, passed)
        if following is not None and (passes := _bounds(following)) is not None:
            bounds = passes
            result = self._step(result, following, passed)
        groups = node.arguments.get("groups", 1)
        value, bias = value.to(torch.float32), bias.to(torch.float32)
        found = (self._named(node), node, self.same(node.args[0]), result, value, bias, window, groups, residual)
        return Layer(*found, *bounds, Plan.of(value, groups))

    def _step(self, result: Node, following: Node, passed: list[Node]) -> Node:
        self.inside.update((result, *passed))
        passed.clear()
        return following

    def _named(self, node: Node) -> str:
        name = node.module[0] or node.name
        self._names[name] = self._names.get(name, 0) + 1
        return name if self._names[name] == 1 else f"{name}#{self._names[name]}"

    def _folds(self, node: Node, source: Node) -> bool:
        """Whether a node is a BatchNorm of stored statistics over the channels of a layer."""
        if node.op != "batch_norm" or node["running_mean"] is None or node["training"] or node.args[1:] == ():
            return False
        given = [node[name] for name in ("weight", "bias", "running_mean", "running_var")]
        channels_last = source.op == "linear" and len(source.shape or ()) > 2
        return not channels_last and self.graph.dependent.isdisjoint(_nodes(given))

    def _normalisation(self, node: Node) -> tuple[Tensor, Tensor]:
        mean, variance = self._precise(node["running_mean"]), self._precise(node["running_var"])
        scale = (variance + node["eps"]).rsqrt()
        if isinstance(node["weight"], Node):
            scale = scale * self._precise(node["weight"])
        shift = -mean * scale
        return scale, shift + self._precise(node["bias"]) if isinstance(node["bias"], Node) else shift

    def _added(self, node: Node, result: Node) -> Node | None:
        """What a sum adds to the result of a layer, if it has the same shape."""
        taken = node in self.inside or node in self.layers  # by the other operand's layer
        if node.op != "add" or taken or node.arguments.get("alpha", 1) != 1:
            return None
        operands = [self.same(operand) for operand in node.args if isinstance(operand, Node)]
        others = [operand for operand in operands if operand is not result]
        if len(operands) != 2 or len(others) != 1:
            return None
        fits = others[0].shape == result.shape == node.shape and others[0] in self.graph.dependent
        return others[0] if fits and others[0].batched and others[0].dtype == torch.float32 else None


def _nodes(values: Iterable[Any]) -> set[Node]:
    return {value for value in values if isinstance(value, Node)}


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def _window(node: Node) -> Window | None:
    """That of a node that is a convolution in two dimensions or a linear layer."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or source.dtype != torch.float32 or source.shape is None or not source.shape[0]:
        return None
    if node.op == "linear":
        return Window((1, 1)) if len(source.shape) > 1 else None
    if node.op != "conv2d" or len(source.shape) != 4 or source.shape[0] != 2:
        return None
    weight = node["weight"]
    kernel = _pair(weight.shape[2:])
    stride, dilation = _pair(node["stride"]), _pair(node["dilation"])
    padding = node["padding"]
    if isinstance(padding, str):
        reach = [(k - 1) * d if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        top, left = (r // 2 for r in reach)
        return Window(kernel, stride, dilation, (top, left, reach[0] - top, reach[1] - left))
    pads = _pair(padding)
    return Window(kernel, stride, dilation, (*pads, *pads))


def pool_window(node: Node) -> Window | None:
    """That of a max pool in two dimensions."""
    source = node.args[0] if node.args else None
    if node.op != "max_pool2d" or not isinstance(source, Node) or len(source.shape or ()) != 4:
        return None
    kernel = _pair(node["kernel_size"])
    stride = _pair(node["stride"] or node["kernel_size"])
    pads = _pair(node["padding"])
    return Window(kernel, stride, _pair(node["dilation"]), (*pads, *pads))


def is_global_mean(node: Node) -> bool:
    """Whether a node is the mean of each plane."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or source.shape is None or len(source.shape) != 4:
        return False
    if node.op == "adaptive_avg_pool2d":
        return node.shape is not None and node.shape[2:] == (1, 1)
    dims = node.arguments.get("dim")
    if node.op != "mean" or node.dtype != source.dtype or dims is None:
        return False
    return sorted(dim % 4 for dim in dims) == [2, 3]


def _bounds(node: Node) -> tuple[float, float] | None:
    """Least and largest value that an activation lets pass."""
    if node.op == "relu":
        return 0.0, math.inf
    if node.op == "relu6":
        return 0.0, 6.0
    names = {"hardtanh": ("min_val", "max_val"), "clamp": ("min", "max")}
    names |= {"clamp_min": ("min", ""), "clamp_max": ("", "max")}
    if node.op not in names:
        return None
    low, high = (node.arguments.get(name) if name else None for name in names[node.op])
    if any(isinstance(bound, Node) for bound in (low, high)):
        return None
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)
