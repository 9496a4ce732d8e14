"""Paths through each weight of a masked network, the units of a layer, and exact probabilities of biased walks."""

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
