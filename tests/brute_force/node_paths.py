"""Paths through each weight of a masked network, every path enumerated, and which units of a layer lie on one."""

import numpy as np
import torch

from brute_force.expand import Graph
from brute_force.paths import enumerate_paths


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
