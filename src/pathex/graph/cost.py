"""What a pass over a graph costs: multiply-adds by parameter, and entries of activations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from pathex.graph.graph import Graph, Node
from pathex.graph.operators import words


@dataclass(frozen=True)
class Cost:
    """What one image costs in a forward pass.

    Multiply-adds by parameter (those in which its entries take part), ``others`` of products of two activations;
    entries of all activations, and of the largest.
    """

    products: Mapping[str, int]
    others: int
    activations: int
    largest: int


def cost(graph: Graph) -> Cost:
    """Count the multiply-adds of convolutions, linear layers and matrix products, and the activations of one image."""
    products: dict[str, int] = dict.fromkeys(graph.parameters, 0)
    others, activations, largest = 0, 0, 0
    on_path = set(graph.path)
    for node in graph.leading:
        size = _of_one(graph, node, node.numel)
        if node in on_path and graph.role(node) not in ("input", "structure", "constant"):
            activations, largest = activations + size, max(largest, size)
        count = _of_one(graph, node, _multiply_adds(node))
        names = _parameters_of(graph, node) if count else ()
        if names:
            products[max(names, key=lambda name: graph.parameters[name].numel)] += count
        else:
            others += count
    return Cost(products, others, activations, largest)


def _of_one(graph: Graph, node: Node, count: int) -> int:
    """What one image has of a count for the images of the example: two, or as many as the network takes."""
    if graph.fixed_batch is not None:
        return count // graph.fixed_batch if node in graph.dependent else count
    return count // 2 if node.batched else count


_MATRICES = words("matmul bmm mm mv inner dot")
_FACTORS = {
    **dict.fromkeys((*_MATRICES, "tensordot"), slice(0, 2)),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), slice(1, 3)),
    "bilinear": slice(2, 3),
}
"""Which arguments of a product may be weights, where it is not the second one alone."""


def _multiply_adds(node: Node) -> int:
    """Those of all images of the example."""
    operands = node.args[1] if node.op == "einsum" else node.args
    shapes = [argument.shape for argument in operands if isinstance(argument, Node) and argument.shape is not None]
    if node.op.startswith("conv"):
        return (prod(shapes[0]) if "transpose" in node.op else node.numel) * prod(shapes[1][1:])
    if node.op in ("linear", "addmm", "addmv", "baddbmm"):
        return node.numel * shapes[1][-1]
    if node.op in _MATRICES:
        return node.numel * shapes[0][-1]
    if node.op == "bilinear":
        return node.numel * prod(shapes[2][1:])
    if node.op == "tensordot":
        return node.numel * prod(shapes[0][dim] for dim in node.args[2])
    if node.op == "einsum" and len(shapes) > 1:
        return node.numel * _summed(node.args[0], shapes)
    if node.op == "scaled_dot_product_attention":
        query, key, value = shapes[:3]
        return node.numel // value[-1] * key[-2] * (query[-1] + value[-1])
    return 0


def _summed(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """How many products an einsum adds up to an entry of its result, with all factors at once."""
    factors, arrow, result = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for labels, shape in zip(factors.split(","), shapes, strict=True):
        first, _, last = labels.partition("...")
        sizes |= dict(zip(first + last, (*shape[: len(first)], *shape[len(shape) - len(last) :]), strict=True))
    return prod(size for label, size in sizes.items() if label not in result and (arrow or factors.count(label) > 1))


def _parameters_of(graph: Graph, node: Node) -> list[str]:
    """The parameters that a factor of a product, the last of them, is made of without other products."""
    for factor in reversed(node.args[1] if node.op == "einsum" else node.args[_FACTORS.get(node.op, slice(1, 2))]):
        found, pending = [], [factor]
        while pending:
            source = pending.pop()
            if isinstance(source, Node) and source not in graph.dependent and not _multiply_adds(source):
                found += [source.target] if source.op == "parameter" else []
                pending += source.inputs
        if found:
            return found
    return []


def held_bytes(graph: Graph, dtype: torch.dtype) -> int:
    """Bytes for each image that a recorded pass, its replay and the gradient of that hold at most.

    A replay keeps what reaches each layer, and the recorded coefficient of every other site: a byte a unit of a gate,
    the place in a pool, one number a unit of a smooth function and its square, two for each factor of a product. What
    is on the way meanwhile is counted as three of the largest activations.

    Returns:
        The number, for a lowered network.
    """
    size, held, largest = dtype.itemsize, 0, 0
    inputs: set[Node] = set()
    for node in graph.carried_path:
        entries = _of_one(graph, node, node.numel)
        role, factors = graph.role(node), [source for source in node.inputs if source in graph.carried]
        largest = max(largest, entries)
        if role == "weighted":
            inputs.update(factors)
        elif role == "gate":
            held += entries
        elif role == "pool":
            held += 8 * entries
        elif role in ("smooth", "function"):
            held += 2 * size * entries
        elif role == "product" and len(factors) > 1:
            held += 2 * size * sum(_of_one(graph, factor, factor.numel) for factor in factors)
        elif role in ("normalisation", "average") and node.op != "batch_norm":
            held += size * entries
    held += size * sum(_of_one(graph, source, source.numel) for source in inputs)
    return held + 3 * size * largest
