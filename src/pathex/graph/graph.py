"""A network as a graph of operators: what it computes, from which parameters, and what depends on its input."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pathex.graph.operators import CREATIONS, DECISIONS, DRAWS, FORMED_LIKE, ROLES


@dataclass(eq=False)
class Node:
    """One value of a network.

    Attributes:
        name: Its name, unique in the graph.
        op: What computes it: ``conv2d``, ``relu``, ... in-place forms by the name of the plain form; ``input``,
            ``parameter``, ``buffer`` and ``constant`` for what is given.
        target: The function that computes it; for what is given, the name or the tensor.
        args: Arguments in their order, other nodes among them.
        kwargs: Arguments by keyword.
        arguments: All arguments by the name that the operator's schema gives them, defaults included.
        shape: Shape for an example of two images; None for what is no tensor.
        dtype: Its dtype; None for what is no tensor.
        batched: Whether its shape depends on the number of images.
        module: Path of the module whose forward pass computes it, and its class.
        function: Name of the function of torch that the network called, which may be made of several operators.
    """

    name: str
    op: str
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    batched: bool = False
    module: tuple[str, str] = ("", "")
    function: str = ""

    @cached_property
    def inputs(self) -> tuple["Node", ...]:
        """The nodes among the arguments, each once."""
        return tuple(dict.fromkeys(nodes_in((*self.args, *self.kwargs.values()))))

    @property
    def place(self) -> str:
        """The module, for messages."""
        path, kind = self.module
        return f"module {path!r} ({kind})" if path else "the network"

    @property
    def numel(self) -> int:
        """Entries for an example of two images."""
        return 0 if self.shape is None else torch.Size(self.shape).numel()

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def __repr__(self) -> str:
        return self.name


def arguments_of(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of the operator's schema, defaults included; none without a schema."""
    arguments: dict[str, Any] = {}
    for place, argument in enumerate(target._schema.arguments if hasattr(target, "_schema") else ()):
        default = argument.default_value if argument.has_default_value() else None
        arguments[argument.name] = args[place] if place < len(args) else kwargs.get(argument.name, default)
    return arguments


def nodes_in(values: Any) -> Iterator[Node]:
    """The nodes in nested arguments."""
    for value in values:
        if isinstance(value, Node):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from nodes_in(value)
        elif isinstance(value, dict):
            yield from nodes_in(value.values())


def _sources(node: Node) -> tuple[Node, ...]:
    """The nodes that values come from: the operand in whose form another one is brought gives its shape alone."""
    return tuple(nodes_in(node.args[:1])) if node.op in FORMED_LIKE else node.inputs


@dataclass(eq=False)
class Graph:
    """A traced network; see `pathex.graph.trace`.

    Attributes:
        nodes: All nodes, each after what it is computed from.
        inputs: The tensors that the network gets, in the order of its arguments.
        output: The node of the output that counts.
        fixed_batch: The only number of images that the network takes, where its forward pass depends on it; else None.
        memo: What readings have found out about it.
    """

    nodes: Sequence[Node]
    inputs: Sequence[Node]
    output: Node
    fixed_batch: int | None = None
    memo: dict[str, Any] = field(default_factory=dict, repr=False)
    _last_uses: dict[tuple[Node, ...], Mapping[Node, tuple[Node, ...]]] = field(default_factory=dict, repr=False)

    @cached_property
    def dependent(self) -> frozenset[Node]:
        """What depends on the values of the input, decisions included."""
        found = set(self.inputs)
        for node in self.nodes:
            if node.op not in CREATIONS and node.op != "sym_size" and not found.isdisjoint(_sources(node)):
                found.add(node)
        return frozenset(found)

    @cached_property
    def carried(self) -> frozenset[Node]:
        """What paths from the input reach: it depends on the input by operations that have a derivative."""
        found = {node for node in self.inputs if _is_float(node)}
        for node in self.nodes:
            differentiable = node.op not in DECISIONS and (_is_float(node) or node.shape is None)
            if differentiable and node in self.dependent and not found.isdisjoint(_sources(node)):
                found.add(node)
        return frozenset(found)

    @cached_property
    def leading(self) -> frozenset[Node]:
        """What the output is computed from."""
        found = {self.output}
        for node in reversed(self.nodes):
            if node in found:
                found.update(node.inputs)
        return frozenset(found)

    @cached_property
    def used(self) -> frozenset[str]:
        """Names of the parameters that the output is computed from."""
        return frozenset(node.target for node in self.leading if node.op == "parameter")

    @cached_property
    def draws(self) -> tuple[Node, ...]:
        """What draws random numbers for the output."""
        return tuple(node for node in self.nodes if node.op in DRAWS and node in self.leading)

    @cached_property
    def path(self) -> tuple[Node, ...]:
        """What the output is computed from and the input reaches, or whose form the input decides, in order."""
        reached = set(self.dependent)
        for node in self.nodes:
            if not reached.isdisjoint(node.inputs):
                reached.add(node)
        return tuple(node for node in self.nodes if node in self.leading and node in reached)

    @cached_property
    def carried_path(self) -> tuple[Node, ...]:
        """The part of `path` without decisions."""
        return tuple(node for node in self.path if node in self.carried or node not in self.dependent)

    @cached_property
    def users(self) -> Mapping[Node, tuple[Node, ...]]:
        """For each node what uses it, on the way to the output."""
        found: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            if node in self.leading:
                for source in node.inputs:
                    found[source].append(node)
        return {node: tuple(users) for node, users in found.items()}

    def last_uses(self, nodes: tuple[Node, ...]) -> Mapping[Node, tuple[Node, ...]]:
        """For each of some nodes in order those that nobody needs after it."""
        if nodes in self._last_uses:
            return self._last_uses[nodes]
        last: dict[Node, Node] = {}
        for node in nodes:
            last.update(dict.fromkeys(node.inputs, node))
            last.setdefault(node, node)
        last.pop(self.output, None)
        found: dict[Node, list[Node]] = {}
        for source, user in last.items():
            found.setdefault(user, []).append(source)
        self._last_uses[nodes] = {node: tuple(sources) for node, sources in found.items()}
        return self._last_uses[nodes]

    @cached_property
    def parameters(self) -> Mapping[str, Node]:
        """The nodes of the parameters that the network uses, by name."""
        return {node.target: node for node in self.nodes if node.op == "parameter"}

    def role(self, node: Node) -> str:
        """What a node does to paths.

        Returns:
            ``input``, ``weighted``, ``gate``, ``smooth``, ``function``, ``pool``, ``average``, ``normalisation``,
            ``product``, ``sum``, ``structure``, ``decision``, ``constant`` (no input reaches it), ``other`` (no rule).
        """
        if node not in self.dependent:
            return "constant"
        return "decision" if node not in self.carried else ROLES.get(node.op, "other")

    def __str__(self) -> str:
        lines = []
        for node in self.nodes:
            if node in self.leading and node.op not in ("parameter", "buffer", "constant"):
                shape = "x".join(map(str, ("N", *(node.shape or ())[1:]) if node.batched else node.shape or ()))
                names = ", ".join(map(_shown, node.args))
                lines.append(f"{node.name:<24} {self.role(node):<14} {shape:<16} {node.op}({names})  {node.module[0]}")
        return "\n".join(line.rstrip() for line in lines)


def _is_float(node: Node) -> bool:
    return node.dtype is not None and (node.dtype.is_floating_point or node.dtype.is_complex)


def _shown(value: Any) -> str:
    if isinstance(value, Node):
        return value.target if value.op in ("parameter", "buffer") else value.name
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_shown, value))}]"
    return f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else str(value)
