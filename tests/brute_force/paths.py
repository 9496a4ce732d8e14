"""All input-to-output paths of a graph, and what a reading of the network makes of each."""

from dataclasses import dataclass

import numpy as np
import torch

from brute_force.expand import Edge


@dataclass(frozen=True)
class Path:
    """A path from input ``source`` to output ``output`` (flat indices) and its edges, the last one first."""

    source: int
    output: int
    edges: tuple[Edge, ...]


def enumerate_paths(graph):
    """Every path, by depth-first search from each output."""
    position = {int(node): i for i, node in enumerate(graph.inputs)}
    for k, output in enumerate(graph.outputs):
        stack = [(int(output), ())]
        while stack:
            node, edges = stack.pop()
            if node in position:
                yield Path(position[node], k, edges)
            stack.extend((edge.source, (*edges, edge)) for edge in graph.incoming[node])


def flow(graph, reading, x, tensors):
    """Sum over paths of coefficient times input, for each image and output: (N, K)."""
    images = x.detach().numpy().reshape(len(x), -1)
    total = np.zeros((len(x), len(graph.outputs)))
    for path, value in _values(graph, reading, tensors, images):
        total[:, path.output] += value
    return torch.from_numpy(total)


def saliency(graph, reading, x, tensors, outputs=None):
    """For each weight the summed value of the paths through it, once for each time that a path uses it.

    Summed over images, and over outputs with the factors ``outputs`` (K,), or 1.
    """
    images = x.detach().numpy().reshape(len(x), -1)
    factors = np.ones(len(graph.outputs)) if outputs is None else outputs.numpy()
    used = {edge.weight[0] for edges in graph.incoming for edge in edges if edge.weight is not None}
    scores = {name: np.zeros(graph.tensors[name].shape) for name in used}
    for path, value in _values(graph, reading, tensors, images):
        through = value.sum() * factors[path.output]
        for edge in path.edges:
            if edge.weight is not None:
                scores[edge.weight[0]].flat[edge.weight[1]] += through
    return {name: torch.from_numpy(score) for name, score in scores.items()}


def _values(graph, reading, tensors, images):
    arrays = {name: entry.detach().double().numpy() for name, entry in tensors.items()}
    factor = {edge: _coefficient(edge, reading, arrays) for edges in graph.incoming for edge in edges}
    for path in enumerate_paths(graph):
        value = images[:, path.source]
        for edge in path.edges:
            value = value * factor[edge]
        yield path, value


def _coefficient(edge, reading, tensors):
    weight = 1.0 if edge.weight is None else tensors[edge.weight[0]].flat[edge.weight[1]]
    gate = 1.0 if edge.gate is None else edge.gate
    match reading:
        case "plain":
            return weight * edge.fixed * edge.norm * gate
        case "squared":
            return (weight * edge.fixed * edge.norm * gate) ** 2
        case "ones":
            return weight * edge.fixed * gate**2
        case "open":
            return (weight * edge.fixed * edge.norm) ** 2
    raise ValueError(reading)
