"""What the channels of a traced network are: labels run through every operator, and what is constant among them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pathex.compaction.labels import Labels, Value, compact, settled, varies
from pathex.graph import CREATIONS, FORMED_LIKE, Graph, Node, Tensors, words

_GIVEN = words("parameter buffer constant")
_VIEWS = words("view view_as")  # which refuse what is only repeated in memory
_MOVES = words(
    "view view_as reshape reshape_as flatten unflatten squeeze unsqueeze contiguous clone alias detach expand "
    "expand_as to _to_copy transpose swapaxes permute movedim t select unbind"
)


@dataclass
class Given:
    """A tensor that no input reaches, and labels of its entries along each dimension of the parameter it shows."""

    tensor: Tensor
    labelings: list[Tensor] = field(default_factory=list)


@dataclass
class Reader:
    """A layer that reads channels through a weight.

    Attributes:
        node: The layer.
        weight: Name of its weight.
        rows: Labels of its outputs.
        columns: Labels of its inputs, those of all groups; with what is ``unknown`` of them, and their ``number``.
        groups: Number of groups.
        transposed: Whether inputs come first in the weight.
        bias: Path of the module whose bias can take the constants that the layer reads, or None: behind zero padding a
            constant becomes a map.
    """

    node: Node
    weight: str
    rows: Tensor
    columns: Tensor
    unknown: Tensor
    number: Tensor
    groups: int
    transposed: bool
    bias: str | None

    def by_unit(self, weight: Tensor) -> Tensor:
        """A weight as ``(group, outputs, inputs, entries)``."""
        parts = weight.unsqueeze(-1).flatten(2).unflatten(0, (self.groups, -1))
        return parts.transpose(1, 2) if self.transposed else parts


class Channels:
    """Runs the labels of channels, and what is constant, through a graph.

    Attributes:
        labels: All labels, with ties and pins.
        values: For each node what is known of it (of several results a tuple).
        readers: The layers, in order.
        risky: Nodes whose arguments may not follow when channels go, with the labels concerned.
        heads: Attributes of modules that count heads: path, name of the attribute, labels along the heads.
        unnamed: Paths of modules that split labels, as into heads, and have no attribute that counts them; the labels.
        attention: Of each attention by head and feature ``(H, D)``: whether queries and keys tell positions apart by
            it, whether its value varies, and its value where it does not.
    """

    def __init__(self, graph: Graph, model: nn.Module, tensors: Tensors, mask: Tensors) -> None:
        self.graph, self.tensors, self.mask = graph, tensors, mask
        self.modules = dict(model.named_modules())
        self.labels = Labels()
        self.values: dict[Node, Any] = {}
        self.readers: list[Reader] = []
        self.uses = Counter(each.target for node in graph.nodes for each in node.inputs if each.op == "parameter")
        self.risky: list[tuple[Node, Tensor]] = []
        self.heads: list[tuple[str, str, Tensor, int]] = []
        self.unnamed: list[tuple[str, Tensor]] = []
        self.attention: dict[Node, tuple[Tensor, Tensor, Tensor]] = {}

    def run(self) -> None:
        """Visit every node, also those that the first output does not need."""
        last: dict[Node, list[Node]] = {}
        for source, user in {source: node for node in self.graph.nodes for source in node.inputs}.items():
            last.setdefault(user, []).append(source)
        for node in self.graph.nodes:
            result = self._visit(node)  # replaced by one of its own, as it may forget parts
            own = [replace(each) if isinstance(each, Value) else each for each in _several(result)]
            self.values[node] = tuple(own) if isinstance(result, tuple) else own[0]
            for done in last.get(node, ()):
                self._shrink(done)

    def _shrink(self, node: Node) -> None:
        """Keep of a value what is said of its labels."""
        for value in self.parts(node):
            value.labels = value.unknown = value.number = torch.empty(0)
        if isinstance(self.values[node], Given) and node.op not in _GIVEN:
            self.values[node] = None

    def parts(self, node: Node) -> list[Value]:
        """The values among the results of a node."""
        return [each for each in _several(self.values.get(node)) if isinstance(each, Value)]

    def _visit(self, node: Node) -> Any:
        if node.op in _GIVEN:
            return self._given(node)
        if node.op == "input":
            return self.opaque(node)
        if node.op == "sym_size":
            return node.args[0].shape[node.args[1]]
        if node not in self.graph.dependent:
            return self._computed(node)
        known = node.op in RULES and any(isinstance(self(each), Value | tuple) for each in node.inputs)
        result = RULES[node.op](self, node) if known else None
        if result is None:
            self.stay(node, f"{node.op} in {node.module[0] or 'the network'}")
        return self.opaque(node) if result is None else result

    def __call__(self, argument: Any) -> Any:
        """What is known of an argument, or of nested ones."""
        if isinstance(argument, Node):
            return self.values[argument]
        return [self(each) for each in argument] if isinstance(argument, (list, tuple)) else argument

    def numbers(self, argument: Any) -> Any:
        """Plain tensors in place of what is known: for values the constants."""
        known = self(argument)
        if isinstance(argument, (list, tuple)):
            return [self.numbers(each) for each in argument]
        if isinstance(known, tuple):
            return tuple(self.numbers(each) for each in known)
        return known.number if isinstance(known, Value) else known.tensor if isinstance(known, Given) else known

    def keywords(self, node: Node) -> dict[str, Any]:
        """The arguments of a node by keyword, as plain ones."""
        return {name: self.numbers(value) for name, value in node.kwargs.items()}

    # -- what no input reaches -----------------------------------------------------------------------------------------

    def _given(self, node: Node) -> Given:
        tensor = node.target if node.op == "constant" else self.tensors[node.target]
        if tensor.is_floating_point():
            tensor = tensor.double()
        if node.op == "constant":
            return Given(tensor)
        labelings = []
        for dim, size in enumerate(tensor.shape):
            form = [size if each == dim else 1 for each in range(tensor.dim())]
            labelings.append(self.labels.along(node.target, dim, size).view(form).expand(tensor.shape))
        return Given(tensor, labelings)

    def _computed(self, node: Node) -> Any:
        args, kwargs = self.numbers(node.args), self.keywords(node)
        if node.op in ("to", "_to_copy") and node.dtype is not None and node.dtype.is_floating_point:
            result = args[0].double()
        else:
            result = node.target(*args, **kwargs)
        first = self(node.args[0]) if node.args else None
        labelings: list[Any] = []
        if isinstance(first, Given) and node.op in _MOVES and node.op not in FORMED_LIKE:
            same = node.op in ("to", "_to_copy")
            copies = [each.contiguous() if node.op in _VIEWS else each for each in first.labelings]
            labelings = [each if same else node.target(each, *args[1:], **kwargs) for each in copies]
        elif node.op not in CREATIONS:
            self.stay(node, f"{node.op} computes with the parameter")
        if isinstance(result, (tuple, list)):
            return tuple(Given(part, [each[n] for each in labelings]) for n, part in enumerate(result))
        return Given(result, labelings) if isinstance(result, Tensor) else result

    # -- what has no rule ----------------------------------------------------------------------------------------------

    def opaque(self, node: Node) -> Value | None:
        """A value that depends on everything, in places that have to stay."""
        if node.shape is None:
            return None
        zero = torch.zeros((), dtype=torch.int64).expand(node.shape)
        return settled(zero, zero == 0, zero.double())

    def stay(self, node: Node, reason: str) -> None:
        """Pin whatever reaches a node."""
        for source in node.inputs:
            for each in _several(self.values[source]):
                for labels in (
                    each.labelings if isinstance(each, Given) else [each.labels] if isinstance(each, Value) else ()
                ):
                    self.labels.pin(labels, reason)

    # -- shared by rules -----------------------------------------------------------------------------------------------

    def matching(self, given: Given, labels: Tensor, reason: str) -> None:
        """Tie the parameter that a tensor shows to the labels of a value that it is broadcast against."""
        form = (1,) * (labels.dim() - given.tensor.dim()) + tuple(given.tensor.shape)
        dims = [dim for dim in range(labels.dim()) if varies(labels, dim)]
        for labeling in given.labelings:
            if labeling.dim() > labels.dim():
                break
            own, other = torch.broadcast_tensors(*compact(labeling.reshape(form), labels))
            pairs = torch.stack([own.flatten(), other.flatten()]).unique(dim=1)
            if len(pairs[0].unique()) == pairs.shape[1] > 1:
                self.labels.tie(own, other, reason)
                return
        if any(form[dim] > 1 for dim in dims):
            self.labels.pin(labels, reason)
            for labeling in given.labelings:
                self.labels.pin(labeling, reason)

    def kept(self, weight: str) -> Tensor:
        """The mask of a weight; of one without a mask, ones."""
        kept = self.mask.get(weight)
        return torch.ones(self.tensors[weight].shape, dtype=torch.bool) if kept is None else kept

    def bias_for(self, node: Node, weight: str) -> str | None:
        """The path of the module whose bias can take constants that a layer reads."""
        path, _, own = weight.rpartition(".")
        module, bias = self.modules.get(path), node["bias"]
        if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or own != "weight" or self.uses[weight] != 1:
            return None
        if bias is None:
            return path if getattr(module, "bias", None) is None else None
        is_own = bias.op == "parameter" and self.uses[bias.target] == 1 and bias.target.rpartition(".")[0] == path
        return path if is_own else None


def _several(value: Any) -> tuple[Any, ...]:
    """The results of a node, also where it has one."""
    return value if isinstance(value, tuple) else (value,)


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(names: str, whatever: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule of operators: from the reading, a node and its first operand (a `Value`, or ``whatever``)."""

    # A rule that returns None leaves all channels where they are.
    def register(function: Rule) -> Rule:
        def checked(of: Channels, node: Node) -> Any:
            x = of(node.args[0])
            return function(of, node, x) if whatever or isinstance(x, Value) else None

        RULES.update(dict.fromkeys(names.split(), checked))
        return function

    return register


def grouped_dims(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The dimensions of two shapes of one size that hold the same entries, in order; without those of size 1."""
    olds, news = [d for d, n in enumerate(before) if n > 1], [d for d, n in enumerate(after) if n > 1]
    while olds or news:
        old, new = [olds.pop(0)] if olds else [], [news.pop(0)] if news else []
        sizes = [before[old[0]] if old else 1, after[new[0]] if new else 1]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                old.append(olds.pop(0))
                sizes[0] *= before[old[-1]]
            else:
                new.append(news.pop(0))
                sizes[1] *= after[new[-1]]
        yield old, new
