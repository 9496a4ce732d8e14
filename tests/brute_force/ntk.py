"""The mean of the NTK trace over every sign pattern of the weights, with gates held fixed."""

import itertools

import torch
from torch import nn


def _network(model, x):
    """The outputs as a function of the weights, with the gates that every ReLU has at present."""
    gates, value = [], x
    for layer in model:
        value = layer(value)
        gates.append((value > 0).double() if isinstance(layer, nn.ReLU) else None)

    def outputs(weights):
        value = x
        for number, (layer, gate) in enumerate(zip(model, gates, strict=True)):
            own = {"weight": weights[f"{number}.weight"]} if hasattr(layer, "weight") else {}
            value = torch.func.functional_call(layer, own, (value,)) if gate is None else value * gate
        return value

    return outputs


def trace_with_fixed_gates(model, x):
    """At the weights as they are: the sum of the squared derivatives of all outputs."""
    weights = {name: entry.detach() for name, entry in model.named_parameters()}
    return sum(entry.square().sum() for entry in torch.func.jacrev(_network(model, x))(weights).values()).detach()


def mean_trace_over_signs(model, x):
    """Mean of the trace of a chain without biases over all 2 ** W choices of the signs of its W weights."""
    weights = {name: entry.detach() for name, entry in model.named_parameters()}
    sizes = [entry.numel() for entry in weights.values()]
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=sum(sizes))), dtype=torch.float64)
    columns = zip(weights.items(), signs.split(sizes, 1), strict=True)
    patterns = {name: part.reshape(-1, *weight.shape) * weight for (name, weight), part in columns}
    jacobian = torch.func.vmap(torch.func.jacrev(_network(model, x)))(patterns)
    return sum(entry.square().sum() for entry in jacobian.values()).detach() / len(signs)
