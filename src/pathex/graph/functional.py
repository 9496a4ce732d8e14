"""In-place forms and aliases of an exported graph resolved: every node is a value that never changes.

Decomposition (`ExportedProgram.run_decompositions`) would do it too, but takes longer than the export and loses what
operators mean (`batch_norm`, `flatten`). Here an in-place operator becomes its plain form, whose result stands for the
written tensor from then on. What was written through a view is put into the tensor that was viewed, and other views of
it are taken again.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from pathex.errors import UnsupportedOperation
from pathex.graph.graph import Node, arguments_of
from pathex.graph.operators import words

_INLINED = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}  # place of the sub-graph among the arguments
_DROPPED = words(
    "_assert_tensor_metadata _assert_scalar _assert_async sym_constrain_range sym_constrain_range_for_size"
)
# Plain forms that have another name than the in-place form without its underscore.
_PLAIN = {"zero": torch.ops.aten.zeros_like.default}


View = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A call: the function, and what it gets beside the tensor that is viewed."""


def write(whole: Tensor, part: Tensor, views: Sequence[View]) -> Tensor:
    """A tensor in which a view of it is replaced."""
    result = whole.contiguous().clone()
    place: Any = result
    for function, args, kwargs in views:
        place = function(place, *args, **kwargs)
    place.copy_(part)
    return result


@dataclass(frozen=True)
class _Alias:
    """How a value is seen in another one: by the views that lead to it, if any."""

    root: fx.Node
    views: tuple[fx.Node, ...] = ()


class _Resolver:
    def __init__(self, names: Mapping[str, str], constants: Mapping[str, Tensor]) -> None:
        self.nodes: list[Node] = []
        self.names, self.constants = names, constants
        self._aliases: dict[fx.Node, _Alias] = {}
        self._values: dict[fx.Node, tuple[Any, int]] = {}  # with the version of the root that it was taken from
        self._versions: dict[fx.Node, int] = {}
        self._taken: set[str] = set()

    # -- values --------------------------------------------------------------------------------------------------------

    def value(self, source: fx.Node) -> Any:
        """What an exported node stands for at this point, taken again from what was written meanwhile."""
        alias = self._aliases[source]
        version = self._versions.get(alias.root, 0)
        known, seen = self._values[source]
        if seen == version:
            return known
        if alias.views:
            view = alias.views[-1]
            known = self._add(view, f"{view.name}_again", view.target, view.args, view.kwargs)
        else:
            known, _ = self._values[alias.root]
        self._values[source] = known, version
        return known

    def _bind(self, source: fx.Node, value: Any, alias: _Alias | None = None) -> None:
        self._aliases[source] = alias = alias or _Alias(source)
        self._values[source] = value, self._versions.get(alias.root, 0)

    def fetch(self, argument: Any) -> Any:
        return fx.node.map_arg(argument, self.value)

    def _add(self, source: fx.Node, name: str, target: Any, args: Any, kwargs: Any) -> Node:
        args, kwargs = tuple(self.fetch(args)), dict(self.fetch(kwargs))
        return self._append(_node(source, name, target, args, kwargs))

    def _append(self, node: Node) -> Node:
        name, number = node.name, 1
        while name in self._taken:
            name, number = f"{node.name}_{number}", number + 1
        self._taken.add(name)
        node.name = name
        self.nodes.append(node)
        return node

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def given(self, source: fx.Node, kind: InputKind, target: str | None) -> Node:
        """A node for what the network holds or gets."""
        name = str(target)
        known: dict[InputKind, tuple[str, Any]] = {
            InputKind.PARAMETER: ("parameter", self.names.get(name, name)),
            InputKind.BUFFER: ("buffer", self.names.get(name, name)),
            InputKind.CONSTANT_TENSOR: ("constant", self.constants.get(name)),
            InputKind.USER_INPUT: ("input", source.name),
        }
        if kind not in known:
            raise UnsupportedOperation(f"the network holds {kind.name.lower()} {target!r}, which cannot be traced")
        op, found = known[kind]
        node = self._append(replace(_node(source, source.name, None, (), {}), op=op, target=found))
        self._bind(source, node)
        return node

    def visit(self, source: fx.Node) -> None:
        """Add an exported call."""
        target, name = source.target, _name_of(source.target)
        if name in _DROPPED or (target is operator.getitem and not source.users):
            return
        if isinstance(source.kwargs.get("out"), fx.Node):
            place = _node(source, "", None, (), {}).place
            raise UnsupportedOperation(f"no rule to read {name} in {place}: it writes into out=")
        if name in _INLINED:
            self._inline(source, name)
        elif target is operator.getitem and not isinstance(self.value(source.args[0]), Node):  # type: ignore[arg-type]
            self._bind(source, self.value(source.args[0])[source.args[1]])  # type: ignore[arg-type]
        elif name.endswith("_") and not name.startswith("__") and hasattr(target, "overloadpacket"):
            self._write(source, name[:-1])
        else:
            value = self._add(source, source.name, target, source.args, source.kwargs)
            self._bind(source, value, self._alias_of(source))

    def _inline(self, source: fx.Node, name: str) -> None:
        place = _INLINED[name]
        inner = getattr(source.graph.owning_module, str(source.args[place].target))  # type: ignore[union-attr]
        operands = list(source.args[place + 1 :])
        for node in inner.graph.nodes:
            if node.op == "placeholder":
                outer = operands.pop(0)
                self._bind(node, self.value(outer), self._aliases[outer])  # type: ignore[arg-type, index]
                self._values[node] = self._values[outer]  # type: ignore[index]
            elif node.op == "output":
                result = self.fetch(node.args[0])
                self._bind(source, tuple(result) if isinstance(result, (tuple, list)) else result)
            elif node.op == "call_function":
                self.visit(node)
            elif node.op != "get_attr":
                raise UnsupportedOperation(f"{node.op} {node.target} in a sub-graph cannot be traced")

    def _alias_of(self, source: fx.Node) -> _Alias | None:
        """That of its first operand, if it shares memory with that."""
        first = next(iter(source.all_input_nodes), None)
        if first is None or first not in self._aliases or not (_memory(source) & _memory(first)):
            return None
        alias = self._aliases[first]
        return _Alias(alias.root, (*alias.views, source))

    def _write(self, source: fx.Node, plain: str) -> None:
        written = source.args[0]
        assert isinstance(written, fx.Node)
        target = _PLAIN.get(plain) or _plain_form(source.target, plain)
        new = self._add(source, plain, target, source.args, source.kwargs)
        alias = self._aliases[written]
        if alias.views:
            whole = self.value(alias.root)
            calls = tuple((v.target, self.fetch(v.args[1:]), dict(self.fetch(v.kwargs))) for v in alias.views)
            arguments = {"whole": whole, "part": new, "views": calls}
            call: dict[str, Any] = {"args": (whole, new, calls), "kwargs": {}, "arguments": arguments}
            root: Any = self._append(replace(whole, name="write", op="write", target=write, **call))
        else:
            root = new
        version = self._versions.get(alias.root, 0) + 1
        self._versions[alias.root] = version
        self._values[alias.root] = root, version
        self._values[written] = new, version  # which need not be taken again
        self._bind(source, new, alias)


def resolve(program: ExportedProgram, names: Mapping[str, str]) -> tuple[list[Node], list[Node], list[Any]]:
    """The nodes of an exported program without in-place forms and aliases."""
    resolver = _Resolver(names, program.constants)
    kinds = {spec.arg.name: (spec.kind, spec.target) for spec in program.graph_signature.input_specs}
    inputs, outputs = [], []
    for source in program.graph.nodes:
        if source.op == "placeholder":
            node = resolver.given(source, *kinds[source.name])
            if node.op == "input" and isinstance(source.meta["val"], Tensor):  # no number or None
                inputs.append(node)
        elif source.op == "call_function":
            resolver.visit(source)
        elif source.op == "output":
            leaves = {leaf: resolver.value(leaf) for leaf in source.all_input_nodes}
            user = set(program.graph_signature.user_outputs)
            outputs = [leaves.get(leaf, leaf) for leaf in source.args[0] if getattr(leaf, "name", None) in user]
        elif source.op != "get_attr":
            raise UnsupportedOperation(f"{source.op} {source.target} cannot be traced")
    return resolver.nodes, inputs, outputs


def _node(source: fx.Node, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
    value: Any = source.meta.get("val")
    is_tensor = isinstance(value, Tensor)
    try:
        shape = tuple(int(size) for size in value.shape) if is_tensor else None
    except RuntimeError as error:
        where = Node("", "", None, module=_module(source)).place
        raise UnsupportedOperation(f"no rule to read {_name_of(target)} in {where}: values decide its shape") from error
    return Node(
        name,
        _name_of(target),
        target,
        args,
        kwargs,
        arguments_of(target, args, kwargs),
        shape,
        value.dtype if is_tensor else None,
        is_tensor and any(isinstance(size, torch.SymInt) for size in value.shape),
        _module(source),
        str((source.meta.get("torch_fn") or ("", ""))[1]).rpartition(".")[2],
    )


def _module(source: fx.Node) -> tuple[str, str]:
    """Path and class of the module that computes a node."""
    stack = list((source.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    return path, (kind if isinstance(kind, str) else kind.__qualname__).rpartition(".")[2]


def _name_of(target: Any) -> str:
    packet = getattr(target, "overloadpacket", None)
    return str(getattr(packet or target, "__name__", None) or getattr(target, "_name", target))


def _plain_form(target: Any, plain: str) -> Any:
    packet = getattr(torch.ops.aten, plain, None)
    overload = getattr(packet, str(target).rpartition(".")[2], None)
    if overload is None:
        raise UnsupportedOperation(f"the in-place operator {target} has no plain form")
    return overload


def _memory(source: fx.Node) -> set[int]:
    """Which pieces of memory hold the value of an exported node."""
    value = source.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return {v.untyped_storage()._cdata for v in values if isinstance(v, Tensor)}
