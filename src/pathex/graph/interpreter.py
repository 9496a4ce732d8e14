"""What every reading of a graph shares: nodes one after another, each value dropped after its last use."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathex.errors import UnsupportedOperation
from pathex.graph.graph import Graph, Node
from pathex.graph.operators import DROPOUTS, words

Tensors = Callable[[str], Tensor]
"""From the name of a parameter or buffer to the tensor that is read in its place."""

_GIVEN = words("parameter buffer constant")
_CASTS = words("to _to_copy type_as float double half bfloat16")
_VIEWS = words("view _unsafe_view reshape")


class Interpreter:
    """Runs a graph as it stands; readings say what else a node means.

    Floating-point values stay in the precision of the reading, whatever a network casts them to.
    """

    def __init__(self, graph: Graph, tensors: Tensors, dtype: torch.dtype) -> None:
        self.graph, self.tensors, self.dtype = graph, tensors, dtype
        self.values: dict[Node, Any] = {}
        self._constants: dict[Node, Any] = {}

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What is run, in order."""
        return self.graph.path

    def run(self, *inputs: Tensor) -> Any:
        """The value of the output, from what the network gets in the order of `Graph.inputs`."""
        self.values = dict(zip(self.graph.inputs, inputs, strict=True))
        self.device = inputs[0].device
        nodes = self.nodes
        last = self.graph.last_uses(nodes)
        try:
            for node in nodes:
                if node not in self.values:
                    self.values[node] = self.visit(node)
                for done in last.get(node, ()):
                    self.values.pop(done, None)
            return self.values[self.graph.output]
        finally:
            self.values, self._constants = {}, {}

    def visit(self, node: Node) -> Any:
        """The value of a node on the way from the input."""
        return self.plain(node)

    def __call__(self, argument: Any) -> Any:
        """The value of an argument; what no input reaches is computed when it is asked for."""
        if isinstance(argument, Node):
            return self.values[argument] if argument in self.values else self.constant(argument)
        if isinstance(argument, (list, tuple)):
            return [self(entry) for entry in argument]
        return argument

    def constant(self, node: Node) -> Any:
        """The value of a node that no input reaches."""
        if node not in self._constants:
            self._constants[node] = self._own(self.given(node) if node.op in _GIVEN else self.plain(node))
        return self._constants[node]

    def given(self, node: Node) -> Any:
        """The value of a parameter, a buffer or a tensor of the graph."""
        return node.target if node.op == "constant" else self.tensors(node.target)

    def plain(self, node: Node) -> Any:
        """What the operator of a node gives; `UnsupportedOperation` if it does not take the values that arrive."""
        if node.op in _CASTS and node.dtype is not None and node.dtype.is_floating_point:
            return self(node.args[0]).to(self.dtype)
        if node.op in DROPOUTS:
            return self(node.args[0])
        args, kwargs = [self(argument) for argument in node.args], {k: self(v) for k, v in node.kwargs.items()}
        if node.op in _VIEWS and isinstance(args[1], list):
            return args[0].reshape(args[1])  # another layout of memory may not have the view that the network took
        try:
            return node.target(*args, **kwargs)
        except IndexError as error:  # a program that was bound to the number of images it was traced with
            raise self.unsupported(node, f"its result depends on the number of images ({error})") from error

    def _own(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point() and value.dtype != self.dtype:
            return value.to(self.device, self.dtype)
        return value.to(self.device) if value.device != self.device else value

    def carries(self, argument: Any) -> bool:
        """Whether an argument is a node that paths reach."""
        return isinstance(argument, Node) and argument in self.graph.carried

    def refuse_dynamic(self, node: Node, *names: str) -> None:
        """Refuse a node one of whose arguments of these names depends on the input."""
        if any(self.carries(node.arguments.get(name)) for name in names):
            raise self.unsupported(node, f"its {' or '.join(names)} depends on the input")

    def unsupported(self, node: Node, why: str = "") -> UnsupportedOperation:
        """The error for a node that cannot be read, ready to be raised."""
        return UnsupportedOperation(f"no rule to read {node.op} in {node.place} as paths{f': {why}' if why else ''}")
