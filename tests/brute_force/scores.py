"""Scores from lists of paths, and the two methods whose released code is the definition."""

import copy
import fnmatch
from functools import partial

import torch
from torch import nn

from brute_force.cases import masked, prunable
from brute_force.expand import Graph
from brute_force.paths import flow, saliency


def px(model, x, mask=None, calibration="batch"):
    """Sum over images, outputs and paths through a weight of squared gates, coefficients, weights and input."""
    theta = masked(model, mask)
    return saliency(Graph(model, x, theta, calibration=calibration), "squared", x**2, theta)


def px_literal(model, x, mask=None, calibration="batch"):
    """The open squared paths through a weight, times what the ones-network sends to their output."""
    theta = masked(model, mask)
    graph = Graph(model, x, theta, calibration=calibration)
    ones = {name: torch.ones_like(entry) for name, entry in theta.items()} | (mask or {})
    activation = flow(graph, "ones", x**2, ones).sum(0)
    return saliency(graph, "open", torch.ones_like(x[:1]), theta, activation)


def synflow_l2(model, x, mask=None, calibration="batch"):
    """The open squared paths through a weight, of one input of ones; data enters by the calibration alone."""
    theta = masked(model, mask)
    return saliency(Graph(model, x, theta, calibration=calibration), "open", torch.ones_like(x[:1]), theta)


def synflow(model, x, mask=None):
    """The paths of the network of absolute values without shifts and activations, at one input of ones."""
    theta = {name: entry.abs() for name, entry in masked(model, mask).items()}
    ones = torch.ones_like(x[:1])
    return saliency(Graph(model, ones, theta, shifts=False, activations=False), "plain", ones, theta)


def synflow_released(model, x, mask=None):
    """The absolute value of every entry of the state, evaluation mode, |theta grad| of the summed output."""
    network = _copy(model, mask).eval()
    network.load_state_dict({name: entry.abs() for name, entry in network.state_dict().items()})
    network(torch.ones_like(x[:1])).sum().backward()
    return {name: (entry * entry.grad).abs().detach() for name, entry in _prunable(network).items()}


def px_cvpr24(model, batches, mask=None, squared_norms=()):
    """What the code released with the paper computes, summed over the batches as delivered."""
    theta = _prunable(_copy(model, mask))
    total = {name: torch.zeros_like(entry) for name, entry in theta.items()}
    for x in batches:
        gate_network, data_network, path_network = (_copy(model, mask).train() for _ in range(3))
        _gate(gate_network, x, data_network, path_network)
        _square(path_network, squared_norms)
        with torch.no_grad():
            z1 = data_network(x)
        (z1 * path_network(x)).sum().backward()
        for name, squared in _prunable(path_network).items():
            total[name] += squared.grad
    # One backward pass a batch adds up gradients; the absolute value comes after the sum.
    return {name: total[name].abs() * theta[name].detach().abs() ** 5 for name in theta}


def px_cvpr24_v2(model, batches, mask=None):
    """What the same code computes since its last change; of a network whose head is not called fc."""
    theta = _prunable(_copy(model, mask))
    total = {name: torch.zeros_like(entry) for name, entry in theta.items()}
    for x in batches:
        gate_network = _copy(model, mask).eval()
        data_network, path_network = (_copy(model, mask).train() for _ in range(2))
        _gate(gate_network, x, data_network, path_network)
        _square(path_network, ())
        with torch.no_grad():
            for module in data_network.modules():
                if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    for entry in module.parameters(recurse=False):
                        entry.fill_(1)
            for name, entry in (mask or {}).items():
                data_network.get_parameter(name).mul_(entry)
            z1 = data_network(x.square())
        (z1 * path_network(torch.ones_like(x))).sum().backward()
        for name, squared in _prunable(path_network).items():
            total[name] += squared.grad
    return {name: total[name].abs() * theta[name].detach() ** 2 for name in theta}


def _gate(gate_network, x, data_network, path_network):
    """Give one network the gates that another has for some images, in place of activations, and a third none."""
    gates = {}
    for name, module in gate_network.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(partial(_note, gates, name))
    gate_network(x)
    for name, gate in gates.items():
        data_network.get_submodule(name).forward = partial(torch.mul, gate)
        path_network.get_submodule(name).forward = lambda x: x


def _note(gates, name, module, given):
    gates[name] = (given[0] > 0).double()


def _copy(model, mask):
    network = copy.deepcopy(model)
    with torch.no_grad():
        for name, entry in masked(model, mask).items():
            network.get_parameter(name).copy_(entry)
    return network


def _square(model, squared_norms):
    for name, module in model.named_modules():
        norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        if not norm or any(fnmatch.fnmatchcase(name, pattern) for pattern in squared_norms):
            for entry in module.parameters(recurse=False):
                entry.data = entry.data**2


def _prunable(model):
    return {name: model.get_parameter(name) for name in prunable(model)}
