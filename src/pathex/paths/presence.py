"""Which values of an open network are not zero: what decides whether the other factors of a product have paths."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pathex.graph import NEVER_ZERO, Interpreter, Node
from pathex.paths.linear import Linear


class _Presence(Linear):
    """Every value is 1, or 0 where it is zero: a sigmoid or a softmax is not, whatever reaches it."""

    def __init__(self, reading: Linear) -> None:
        super().__init__(reading.graph, reading.weights, None, coefficients="connected", per_sample="one")

    def run(self, *inputs: Tensor) -> Any:
        self.inputs, self.present = inputs, {}
        for node, x in zip(self.graph.inputs, inputs, strict=True):
            self.seen(node, x)
        return Interpreter.run(self, *inputs)

    def visit(self, node: Node) -> Any:
        result = super().visit(node)
        return self.seen(node, result) if isinstance(result, Tensor) and self.carries(node) else result

    def seen(self, node: Node, value: Tensor) -> Tensor:
        present = (value != 0).to(self.dtype)
        if any(sum(map(self.carries, user.inputs)) > 1 for user in self.graph.users[node]):
            self.present[node] = present
        return present

    def beside(self, argument: Any) -> Tensor:
        value: Tensor = self(argument)  # a class token is no path, and yet a factor
        return (value != 0).to(self.dtype)

    def passes(self, x: Tensor, node: Node) -> Tensor:
        return torch.ones_like(x) if node.op in NEVER_ZERO else x

    def joined(self, node: Node, terms: Sequence[Tensor]) -> Tensor:
        return terms[0]  # the product of all, as each of them is


def presence(reading: Linear) -> Mapping[Node, Tensor]:
    """Where the operands of the products of a network are not zero."""
    if not reading.present:
        twin = _Presence(reading)
        with torch.no_grad():
            twin.run(*((x != 0).to(x.dtype) for x in reading.inputs))
        reading.present = twin.present
    return reading.present
