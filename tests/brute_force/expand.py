"""A network written out as scalars: one node per number, one edge per coefficient, by loops over every index."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from brute_force.cases import Branches
from brute_force.planes import extents, geometry, taps

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Edge:
    """One factor of a path: a weight or none, a fixed and a BatchNorm coefficient, and a gate (N,) or none."""

    source: int
    weight: tuple[str, int] | None = None
    fixed: float = 1.0
    norm: float = 1.0
    gate: Array | None = None


class Graph:
    """The scalars of ``model`` at the images ``x``, with the slopes and the routes recorded there.

    ``tensors`` replaces parameters by name. ``calibration`` is ``"batch"`` (biased statistics of these images, layer
    after layer) or ``"running"``. Without ``shifts`` no bias, mean or BatchNorm shift acts; without ``activations``
    every activation is the identity.
    """

    def __init__(self, model, x, tensors=None, *, calibration="running", shifts=True, activations=True):
        self.calibration, self.shifts, self.activations = calibration, shifts, activations
        self.names = {id(entry): name for name, entry in model.named_parameters()}
        self.tensors = {name: entry.detach().numpy() for name, entry in model.named_parameters()}
        self.tensors |= {name: entry.detach().numpy() for name, entry in (tensors or {}).items()}
        self.incoming = []
        self.values = []
        images = x.detach().numpy().reshape(len(x), -1)
        self.inputs = np.array([self.add([], value=images[:, i]) for i in range(images.shape[1])])
        self.outputs = self.expand(model, self.inputs.reshape(x.shape[1:])).ravel()

    def output(self):
        """The recorded outputs, (N, K)."""
        return torch.from_numpy(np.stack([self.values[node] for node in self.outputs], 1))

    def add(self, edges, shift=0.0, value=None):
        """A new node; its value is that of its edges plus the shift, unless given."""
        if value is None:
            value = sum((self.factor(edge) * self.values[edge.source] for edge in edges), start=np.array(0.0))
            value = value + (shift if self.shifts else 0.0)
        self.incoming.append(edges)
        self.values.append(value)
        return len(self.values) - 1

    def factor(self, edge):
        """The coefficient of an edge in the recorded network; ``add`` needs it for linear sites only."""
        weight = 1.0 if edge.weight is None else self.tensors[edge.weight[0]].flat[edge.weight[1]]
        return np.asarray(weight * edge.fixed * edge.norm * (1.0 if edge.gate is None else edge.gate))

    def tensor(self, entry):
        """Name and present value of a parameter of the model; an absent one reads as zeros."""
        if entry is None:
            return "", np.zeros(1024)
        name = self.names[id(entry)]
        return name, self.tensors[name]

    def expand(self, module, x):
        """The nodes that come out of a module at the nodes ``x`` (no batch dimension)."""
        for kind, expander in EXPANDERS.items():
            if isinstance(module, kind):
                return expander(self, module, x)
        raise NotImplementedError(type(module).__name__)


def _sequential(graph, module, x):
    for child in module:
        x = graph.expand(child, x)
    return x


def _branches(graph, module, x):
    outputs = [graph.expand(branch, x) for branch in module.branches]
    if module.join == "cat":
        return np.concatenate(outputs)
    total = [graph.add([Edge(int(y.flat[i])) for y in outputs]) for i in range(outputs[0].size)]
    return np.array(total).reshape(outputs[0].shape)


def _flatten(graph, module, x):
    return x.ravel()


def _linear(graph, module, x):
    name, weight = graph.tensor(module.weight)
    _, bias = graph.tensor(module.bias)
    rows = []
    for k in range(weight.shape[0]):
        edges = [Edge(int(x[i]), (name, k * weight.shape[1] + i)) for i in range(weight.shape[1])]
        rows.append(graph.add(edges, bias[k]))
    return np.array(rows)


def _conv(graph, module, x):
    name, weight = graph.tensor(module.weight)
    _, bias = graph.tensor(module.bias)
    channels, fan = weight.shape[:2]
    y = np.empty((channels, *extents(x.shape[1:], module)), dtype=int)
    for o, i, j in np.ndindex(*y.shape):
        edges = []
        for c, (a, b, row, column) in itertools.product(range(fan), taps(x.shape[1:], module, (i, j))):
            source = x[o // (channels // module.groups) * fan + c, row, column]
            edges.append(Edge(int(source), (name, int(np.ravel_multi_index((o, c, a, b), weight.shape)))))
        y[o, i, j] = graph.add(edges, bias[o])
    return y


def _conv_transposed(graph, module, x):
    name, weight = graph.tensor(module.weight)
    _, bias = graph.tensor(module.bias)
    channels, fan = weight.shape[:2]
    options = zip(x.shape[1:], *geometry(module), module.output_padding, strict=True)
    size = [
        (side - 1) * step - 2 * pad + gap * (kernel - 1) + more + 1 for side, kernel, step, gap, pad, more in options
    ]
    arriving = {index: [] for index in np.ndindex(fan * module.groups, *size)}
    for (c, i, j), o in itertools.product(np.ndindex(*x.shape), range(fan)):
        for a, b, row, column in taps(size, module, (i, j)):
            target = c // (channels // module.groups) * fan + o
            flat = int(np.ravel_multi_index((c, o, a, b), weight.shape))
            arriving[target, row, column].append(Edge(int(x[c, i, j]), (name, flat)))
    nodes = [graph.add(edges, bias[index[0]]) for index, edges in arriving.items()]
    return np.array(nodes).reshape(fan * module.groups, *size)


def _norm(graph, module, x):
    (_, gamma), (_, beta) = graph.tensor(module.weight), graph.tensor(module.bias)
    assert module.running_mean is not None and module.running_var is not None
    y = np.empty_like(x)
    for c in range(len(x)):
        arriving = np.array([graph.values[node] for node in x[c].ravel()])
        mean, variance = arriving.mean(), ((arriving - arriving.mean()) ** 2).mean()
        if graph.calibration == "running":
            mean, variance = module.running_mean[c].item(), module.running_var[c].item()
        norm = gamma[c] / np.sqrt(variance + module.eps)
        nodes = [graph.add([Edge(int(node), norm=norm)], beta[c] - norm * mean) for node in x[c].ravel()]
        y[c] = np.array(nodes).reshape(x[c].shape)
    return y


def _activation(graph, module, x):
    if not graph.activations:
        return x
    y = np.empty_like(x)
    for index in np.ndindex(*x.shape):
        value = graph.values[x[index]]
        if isinstance(module, nn.Hardtanh):
            slope = ((value > module.min_val) & (value < module.max_val)).astype(float)
            after = np.clip(value, module.min_val, module.max_val)
        else:
            slope = np.where(value > 0, 1.0, _negative_slope(graph, module, index[0]))
            after = slope * value
        y[index] = graph.add([Edge(int(x[index]), gate=slope)], value=after)
    return y


def _negative_slope(graph, module, channel):
    if isinstance(module, nn.PReLU):
        slopes = graph.tensor(module.weight)[1]
        return float(slopes[channel if len(slopes) > 1 else 0])
    return module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0


def _pooled(graph, module, x, edges):
    y = np.empty((len(x), *extents(x.shape[1:], module)), dtype=int)
    for c, i, j in np.ndindex(*y.shape):
        y[c, i, j] = graph.add(
            edges([int(x[c, row, column]) for _, _, row, column in taps(x.shape[1:], module, (i, j))])
        )
    return y


def _max_pool(graph, module, x):
    def edges(window):
        winner = np.array([graph.values[source] for source in window]).argmax(0)
        return [Edge(source, gate=(winner == i) * 1.0) for i, source in enumerate(window)]

    return _pooled(graph, module, x, edges)


def _average_pool(graph, module, x):
    def edges(window):
        count = math.prod(geometry(module)[0]) if module.count_include_pad else len(window)
        return [Edge(source, fixed=1 / count) for source in window]

    return _pooled(graph, module, x, edges)


def _global_average(graph, module, x):
    means = [graph.add([Edge(int(node), fixed=1 / channel.size) for node in channel.ravel()]) for channel in x]
    return np.array(means).reshape(-1, 1, 1)


EXPANDERS = {
    nn.Sequential: _sequential,
    Branches: _branches,
    nn.Flatten: _flatten,
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _conv_transposed,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.ReLU: _activation,
    nn.LeakyReLU: _activation,
    nn.PReLU: _activation,
    nn.Hardtanh: _activation,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _global_average,
}
