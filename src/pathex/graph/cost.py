"""What a pass over a graph costs: multiply-adds by parameter, and entries of activations."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch

from pathex.graph.graph import Graph, Node


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
        size = _of_one(node, node.numel)
        if node in on_path and graph.role(node) not in ("input", "structure", "constant"):
            activations, largest = activations + size, max(largest, size)
        count = _of_one(node, _multiply_adds(node))
        names = _parameters_of(graph, node) if count else ()
        if names:
            products[max(names, key=lambda name: graph.parameters[name].numel)] += count
        else:
            others += count
    return Cost(products, others, activations, largest)


def _of_one(node: Node, count: int) -> int:
    """What one image has of a count for the two images of the example."""
    return count // 2 if node.batched else count


def _multiply_adds(node: Node) -> int:
    """Those of an example of two images."""
    shapes = [argument.shape for argument in node.args if isinstance(argument, Node) and argument.shape is not None]
    if node.op.startswith("conv"):
        return (prod(shapes[0]) if "transpose" in node.op else node.numel) * prod(shapes[1][1:])
    if node.op in ("linear", "addmm", "baddbmm"):
        return node.numel * shapes[1][-1]
    if node.op in ("matmul", "bmm", "mm", "mv"):
        return node.numel * shapes[0][-1]
    if node.op == "scaled_dot_product_attention":
        query, key, value = shapes[:3]
        return node.numel // value[-1] * key[-2] * (query[-1] + value[-1])
    return 0


def _parameters_of(graph: Graph, node: Node) -> list[str]:
    """The parameters that the second factor of a product is made of."""
    place = 2 if node.op in ("addmm", "baddbmm") else 1
    found, pending = [], [node.args[place]]
    while pending:
        source = pending.pop()
        if isinstance(source, Node) and source not in graph.dependent:
            found += [source.target] if source.op == "parameter" else []
            pending += source.inputs
    return found


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
        entries = _of_one(node, node.numel)
        role = graph.role(node)
        largest = max(largest, entries)
        if role == "weighted":
            inputs.update(source for source in node.inputs if source in graph.carried)
        elif role == "gate":
            held += entries
        elif role == "pool":
            held += 8 * entries
        elif role in ("smooth", "function"):
            held += 2 * size * entries
        elif role == "product" and sum(source in graph.carried for source in node.inputs) > 1:
            held += 2 * size * sum(source.numel // 2 for source in node.inputs if source in graph.carried)
        elif role in ("normalisation", "average") and node.op != "batch_norm":
            held += size * entries
    held += size * sum(source.numel // 2 for source in inputs)
    return held + 3 * size * largest
