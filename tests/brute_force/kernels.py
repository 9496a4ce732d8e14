"""Scores made of derivatives of the outputs, from whole Jacobians and from a mask that is written out; traces."""

import copy
import itertools
from functools import partial

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from brute_force.cases import masked, measure, norms, prunable


def network(model, x, keep, calibration, theta=None):
    """Outputs for x as a function of the prunable weights; BatchNorm statistics are those of the masked weights."""
    model = copy.deepcopy(model).eval()
    entries = masked(model, None) | (theta or {})
    entries |= {name: entries[name] * kept for name, kept in (keep or {}).items()}
    if calibration == "train":
        # Written out: torch's rules give a wrong derivative of the forward derivative of F.batch_norm here.
        for norm in norms(model):
            norm.forward = partial(_normalised, norm)
    if calibration == "batch":
        measure(model, x, entries)
    return lambda weights: torch.func.functional_call(model, entries | weights, (x,))


def _normalised(norm, arriving):
    dims = [dim for dim in range(arriving.dim()) if dim != 1]
    centred = arriving - arriving.mean(dims, keepdim=True)
    shape = (-1, *[1] * (arriving.dim() - 2))
    scale = ((centred**2).mean(dims, keepdim=True) + norm.eps) ** -0.5
    return centred * scale * norm.weight.view(shape) + norm.bias.view(shape)


def jacobian(model, x, keep, calibration):
    """The kept weights, and for each the derivative of every output."""
    entries = masked(model, keep)
    weights = {name: entries[name] for name in prunable(model)}
    return weights, torch.func.jacrev(network(model, x, keep, calibration))(weights)


def all_rows(model, x, keep, calibration):
    """The Jacobian by all parameters, ``(images, outputs, entries)``, zero where the mask removes."""
    with sdpa_kernel(SDPBackend.MATH):  # torch has no rule to take several rows of the fused one
        found = torch.func.jacrev(network(model, x, keep, calibration))(masked(model, keep))
    rows = [each.flatten(0, each.dim() - 1 - model.get_parameter(n).dim()) for n, each in found.items()]
    kept = [rows_of * (keep or {}).get(n, torch.tensor(True)) for n, rows_of in zip(found, rows, strict=True)]
    return torch.cat([each.reshape(len(x), -1, each[0].numel()) for each in kept], 2)


def _reduced(derivatives, weight):
    return (derivatives**2).reshape(-1, *weight.shape).sum(0) * weight**2


def ntk_diagonal(model, x, keep=None, calibration="batch"):
    """The squared weight times the sum of the squared derivatives of every output of every image."""
    weights, derivatives = jacobian(model, x, keep, calibration)
    return {name: _reduced(derivatives[name], weight) for name, weight in weights.items()}


def fisher_diagonal(model, x, y, keep=None, calibration="batch"):
    """Squared derivatives of the log-probability of the label, or of every class times its probability without labels.

    Of pixels with labels 255 nothing counts; the log-probability of an image is the sum over its pixels.
    """
    entries = masked(model, keep)
    weights = {name: entries[name] for name in prunable(model)}
    outputs = network(model, x, keep, calibration)

    def logs(entries):
        return torch.log(torch.softmax(outputs(entries), 1))

    derivatives = torch.func.jacrev(logs)(weights)
    probability = logs(weights).exp()
    scores = {}
    for name, weight in weights.items():
        by_class = derivatives[name].movedim(1, -weight.dim() - 1)  # images, pixels, classes, weight
        if y is None:
            scale = probability.movedim(1, -1).sqrt()
            scores[name] = _reduced(by_class * scale.reshape(*scale.shape, *[1] * weight.dim()), weight)
            continue
        each = torch.zeros(len(x), *weight.shape, dtype=x.dtype)
        for index in torch.cartesian_prod(*map(torch.arange, y.shape)).reshape(-1, y.dim()).tolist():
            if (label := int(y[tuple(index)])) != 255:
                each[index[0]] += by_class[(*index, label)]
        scores[name] = _reduced(each, weight)
    return scores


def sap_objective(model, x, theta, direction, epsilon, keep, calibration):
    """R as a function of the mask; without epsilon the squared derivative along the direction."""
    outputs = network(model, x, keep, calibration, theta)

    def objective(mask):
        here = {name: theta[name] * entry for name, entry in mask.items()}
        step = {name: direction[name] * entry for name, entry in mask.items()}
        if epsilon is None:
            return (torch.func.jvp(outputs, (here,), (step,))[1] ** 2).sum()
        there = {name: here[name] + epsilon * step[name] for name in mask}
        return ((outputs(here) - outputs(there)) ** 2).sum()

    return objective


def _ones(theta, keep):
    return {name: (keep or {}).get(name, torch.ones_like(entry)).to(entry) for name, entry in theta.items()}


def ntk_sap(model, x, theta, direction, *, epsilon, keep=None, calibration="batch"):
    """The derivative by the mask, without its sign and without what the mask removed."""
    ones = _ones(theta, keep)
    derivatives = torch.func.grad(sap_objective(model, x, theta, direction, epsilon, keep, calibration))(ones)
    return {name: (derivatives[name] * ones[name]).abs() for name in ones}


def differences_by_mask(objective, theta, step=1e-5):
    """The derivative by every entry of a mask of ones, by central differences."""
    scores = {}
    for name, entry in theta.items():
        scores[name] = torch.zeros_like(entry)
        for index in range(entry.numel()):
            sides = []
            for shift in (step, -step):
                ones = _ones(theta, None)
                ones[name].view(-1)[index] += shift
                sides.append(objective(ones))
            scores[name].view(-1)[index] = (sides[0] - sides[1]).abs() / (2 * step)
    return scores


def _gated(model, x):
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
    return sum(entry.square().sum() for entry in torch.func.jacrev(_gated(model, x))(weights).values()).detach()


def mean_trace_over_signs(model, x):
    """Mean of the trace of a chain without biases over all 2 ** W choices of the signs of its W weights."""
    weights = {name: entry.detach() for name, entry in model.named_parameters()}
    sizes = [entry.numel() for entry in weights.values()]
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=sum(sizes))), dtype=torch.float64)
    columns = zip(weights.items(), signs.split(sizes, 1), strict=True)
    patterns = {name: part.reshape(-1, *weight.shape) * weight for (name, weight), part in columns}
    jacobian = torch.func.vmap(torch.func.jacrev(_gated(model, x)))(patterns)
    return sum(entry.square().sum() for entry in jacobian.values()).detach() / len(signs)
