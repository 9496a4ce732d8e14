"""All input-to-output paths of a graph and what a reading makes of each; units of layers, and biased walks."""

from dataclasses import dataclass

import numpy as np
import torch

from brute_force.expand import Edge, Graph


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
        case "absolute":
            return abs(weight * edge.fixed * edge.norm) * gate**2
        case "ones":
            return weight * edge.fixed * gate**2
        case "open":
            return (weight * edge.fixed * edge.norm) ** 2
    raise ValueError(reading)


def paths_through(model, x, mask):
    """For each weight the paths of kept weights through it (once for each use), and all; averages count their share."""
    graph = Graph(model, x[:1], {name: kept.double() for name, kept in mask.items()})
    through = {name: np.zeros(kept.shape) for name, kept in mask.items()}
    total = 0.0
    for path in enumerate_paths(graph):
        used = [edge.weight for edge in path.edges if edge.weight is not None]
        value = float(np.prod([edge.fixed for edge in path.edges]))
        value *= float(all(graph.tensors[name].flat[flat] for name, flat in used))
        total += value
        for name, flat in used:
            through[name].flat[flat] += value
    return {name: torch.from_numpy(count) for name, count in through.items()}, total


def ends_of(shape, groups=1, transposed=False):
    """Input and output unit of every weight of a layer, in the order of its flat indices."""
    ends = []
    for first, second, *_ in np.ndindex(*shape):
        other = first // (shape[0] // groups) * shape[1] + second
        ends.append((first, other) if transposed else (other, first))
    return ends


def units_of(shape, groups=1, transposed=False):
    """Flat indices of the weights of each output unit, of each input unit and of each kernel of a layer."""
    outputs, inputs, kernels = {}, {}, {}
    for flat, (source, target) in enumerate(ends_of(shape, groups, transposed)):
        outputs.setdefault(target, []).append(flat)
        inputs.setdefault(source, []).append(flat)
        kernels.setdefault((target, source), []).append(flat)
    return outputs, inputs, kernels


class Layer:
    """A layer as walks see it; ``back`` says that they come from the outputs."""

    def __init__(self, weight, groups=1, transposed=False):
        self.shape, self.sizes = weight.shape, np.abs(weight).ravel()
        self.ends = np.array(ends_of(weight.shape, groups, transposed))
        self.units = self.ends.max(0) + 1  # number of inputs and outputs

    def use(self, at, back=False):
        """The probability that a walk uses each weight, from those that it is at each input (output)."""
        here = self.ends[:, int(back)]
        away = np.bincount(here, weights=self.sizes)
        return (at[here] * self.sizes / away[here]).reshape(self.shape)

    def passed(self, use, back=False):
        """The probability that a walk is then at each output (input)."""
        return np.bincount(self.ends[:, 1 - int(back)], weights=use.ravel())
