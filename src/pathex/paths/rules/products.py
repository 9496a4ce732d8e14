"""Products and quotients: linear in each factor.

Where the input reaches one factor, the others are coefficients. Where it reaches several (gates, attention, products of
two branches), the product is read by its local Jacobian, squared in squared networks: ``out = A^2 b + B^2 a`` with the
recorded factors A and B, so that a path goes through each of them. Open, A and B count 1, and 0 where they are zero,
averaged over what a product of matrices contracts: else queries and keys, whose every unit reaches every unit of the
values, would count that many times as much as they.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pathex.graph import NEVER_ZERO, Interpreter, Node
from pathex.paths import recording
from pathex.paths.linear import Linear, rule
from pathex.paths.recording import Factors, Record
from pathex.paths.weights import call_of


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


_ELEMENTWISE = ("mul", "multiply")
_QUOTIENTS = ("div", "divide", "true_divide")
_MATRICES = ("matmul", "bmm", "mm", "mv", "dot", "inner", "outer", "vdot")


def _operands(node: Node) -> Sequence[Any]:
    return node.args[1] if node.op == "einsum" else node.args[:2]


@recording.rule(*_ELEMENTWISE, *_MATRICES, "einsum")
def _product(reading: Record, node: Node) -> Tensor:
    carried = [operand for operand in _operands(node) if reading.carries(operand)]
    if len(carried) > 1:
        reading.keep(node, Factors(tuple(map(reading, carried))))
    return reading.plain(node)


def multilinear(
    reading: Linear, node: Node, operands: Sequence[Any], call: Callable[[Sequence[Any]], Tensor]
) -> Tensor:
    """Read a function that is linear in each of its operands."""
    places = [place for place, operand in enumerate(operands) if reading.carries(operand)]
    scored = [place for place, operand in enumerate(operands) if reading.origins.origin(operand) is not None]
    if len(places) == 1 and len(scored) == 1:
        fixed = {p: reading.coefficient(reading(o)) for p, o in enumerate(operands) if p not in (*places, *scored)}

        def apply(x: Tensor, weight: Tensor) -> Tensor:
            return call([fixed.get(p, x if p == places[0] else weight) for p in range(len(operands))])

        return reading.weighed(node, reading(operands[places[0]]), operands[scored[0]], call_of(node, apply))
    if scored:
        raise reading.unsupported(node, "it multiplies several prunable weights")
    factors = [reading(o) if p in places else reading.coefficient(reading(o)) for p, o in enumerate(operands)]
    if len(places) == 1:
        return call(factors)
    if reading.tape is None:
        reading.open_per_sample(node)
        present = presence(reading)
        recorded = [present[operands[place]] for place in places]
    else:
        site: Factors = reading.tape[node]
        recorded = [reading.slope(tensor).to(reading.dtype) for tensor in site.operands]
    arriving = list(factors)
    for place, tensor in zip(places, recorded, strict=True):
        factors[place] = tensor
    terms = [call([*factors[:place], arriving[place], *factors[place + 1 :]]) for place in places]
    if reading.opened and reading.coefficients != "connected" and node.op not in _ELEMENTWISE:
        contracted = call([torch.ones_like(factor) for factor in factors])
        terms = [term / contracted for term in terms]
    return reading.joined(node, terms)


@rule(*_ELEMENTWISE)
def _product_linear(reading: Linear, node: Node) -> Tensor:
    return multilinear(reading, node, node.args[:2], lambda factors: torch.mul(*factors))


@rule(*_QUOTIENTS)
def _quotient_linear(reading: Linear, node: Node) -> Tensor:
    if node.kwargs.get("rounding_mode") is not None or reading.carries(node.args[1]):
        raise reading.unsupported(node, "it is not linear in what depends on the input")
    x: Tensor = reading(node.args[0])
    if reading.opened and node.args[1] in reading.graph.dependent:  # a recorded scale
        reading.open_per_sample(node)
        return x
    if reading.coefficients == "ones" and node.args[1] in reading.graph.dependent:
        return x
    return x / reading.coefficient(reading(node.args[1]))


@rule(*_MATRICES)
def _matrices_linear(reading: Linear, node: Node) -> Tensor:
    return multilinear(reading, node, node.args[:2], lambda factors: node.target(*factors))


@rule("einsum")
def _einsum_linear(reading: Linear, node: Node) -> Tensor:
    return multilinear(reading, node, node.args[1], lambda factors: torch.einsum(node.args[0], *factors))
