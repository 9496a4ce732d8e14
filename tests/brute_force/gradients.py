"""Loss sensitivities of copied networks: derivatives in the mask, the Hessian written out, training unrolled."""

import copy

import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from brute_force.cases import build, measure, prunable


def snip(model, batches, mask=None, calibration="train"):
    """The absolute derivative of the loss in the entries of the mask that are there."""
    scores = force(model, batches, mask, calibration)
    return scores if mask is None else {name: score * mask[name] for name, score in scores.items()}


def force(model, batches, mask=None, calibration="train"):
    """The absolute derivative of the loss in every entry of the mask, those that are zero included."""
    own = {name: model.get_parameter(name).detach() for name in prunable(model)}
    entries = {n: (torch.ones_like(p) if mask is None else mask[n].to(p)).requires_grad_() for n, p in own.items()}
    network = prepared(model, batches, mask, calibration)
    mean_loss(network, batches, {name: entries[name] * own[name] for name in own}).backward()
    return {name: entry.grad.abs() for name, entry in entries.items()}


def grasp(model, batches, mask=None, calibration="train", temperature=200.0):
    """Weight times Hessian times gradient, with the whole Hessian over the kept weights as a matrix."""
    own = {name: model.get_parameter(name).detach() for name in prunable(model)}
    keep = {n: torch.ones_like(p, dtype=torch.bool) if mask is None else mask[n] for n, p in own.items()}
    network = prepared(model, batches, mask, calibration)
    theta = torch.cat([own[name][keep[name]] for name in own])

    def loss(vector):
        parts = vector.split([int(keep[name].sum()) for name in own])
        weights = {n: torch.zeros_like(own[n]).masked_scatter(keep[n], p) for n, p in zip(own, parts, strict=True)}
        return mean_loss(network, batches, weights, temperature)

    hessian = torch.autograd.functional.hessian(loss, theta)
    gradient = torch.autograd.functional.jacobian(loss, theta)
    found = (theta * (hessian @ gradient)).split([int(keep[name].sum()) for name in own])
    return {n: torch.zeros_like(own[n]).masked_scatter(keep[n], p) for n, p in zip(own, found, strict=True)}


def iterative_grasp(model, batches, mask=None, calibration="train"):
    """The squared derivative of the loss."""
    return {name: slope.square() for name, slope in _slopes(model, batches, mask, calibration, _mean)[0].items()}


def fisher_taylor(model, batches, mask=None, calibration="train"):
    """To second order what the loss gains when a weight goes, with squared derivatives for the curvature."""
    weights = _weights(model, mask)
    (first,) = _slopes(model, batches, mask, calibration, _mean)
    apart = _slopes(model, batches, mask, calibration, lambda losses: losses)
    squares = {name: sum(slopes[name].square() for slopes in apart) / len(apart) for name in weights}
    return {name: (weights[name] * first[name] + weights[name] ** 2 * squares[name] / 2).abs() for name in weights}


def hutchinson_taylor(model, parts, signs, mask=None, calibration="batch", temperature=200.0, form="taylor"):
    """The same with z (H z), averaged over the signs z of each image, and H the Hessian of its loss written out."""
    weights = _weights(model, mask)
    network = prepared(model, parts, mask, calibration)
    theta, sizes = torch.cat([each.flatten() for each in weights.values()]), [w.numel() for w in weights.values()]
    diagonal, first = torch.zeros_like(theta), torch.zeros_like(theta)

    def named(vector):
        split = vector.split(sizes)
        return {name: part.view_as(each) for (name, each), part in zip(weights.items(), split, strict=True)}

    def loss_of(part):
        return lambda vector: mean_loss(network, [part], named(vector), temperature)

    for part, drawn in zip(parts, signs, strict=True):
        loss = loss_of(part)
        hessian = torch.autograd.functional.hessian(loss, theta)
        first += torch.autograd.functional.jacobian(loss, theta) / len(parts)
        for z in drawn:
            diagonal += z * (hessian @ z) / len(drawn) / len(parts)
    second = theta**2 * diagonal / 2
    return named({"taylor": (theta * first + second).abs(), "saliency": second, "diagonal": diagonal}[form])


def _weights(model, mask):
    own = {name: model.get_parameter(name).detach() for name in prunable(model)}
    return {name: weight.clone() if mask is None else weight * mask[name] for name, weight in own.items()}


def _mean(losses):
    return [sum(losses) / len(losses)]


def _slopes(model, batches, mask, calibration, reduced):
    """Derivatives by the weights of the losses of all images, or of what is made of them."""
    network, losses = prepared(model, batches, mask, calibration), []
    leaves = {name: weight.requires_grad_() for name, weight in _weights(model, mask).items()}
    for x, y in batches:
        outputs = functional_call(copy.deepcopy(network), leaves, (x,))
        losses += [F.cross_entropy(output, label) for output, label in zip(outputs, y, strict=True)]
    found = [torch.autograd.grad(loss, list(leaves.values()), retain_graph=True) for loss in reduced(losses)]
    return [dict(zip(leaves, slopes, strict=True)) for slopes in found]


TWINS = {
    "snip": snip,
    "iterative-snip": snip,
    "force": force,
    "grasp": grasp,
    "iterative-grasp": iterative_grasp,
    "fisher-taylor": fisher_taylor,
}


def mean_loss(network, batches, weights, temperature=1.0):
    """Minus the logarithm of the probability of the true class, image by image, over the number of images."""
    total, images = torch.zeros((), dtype=torch.float64), 0
    for x, y in batches:
        outputs = functional_call(copy.deepcopy(network), weights, (x,)) / temperature
        for output, label in zip(outputs, y.tolist(), strict=True):
            total = total - (output[label].exp() / output.exp().sum()).log()
            images += 1
    return total / images


def prepared(model, batches, mask, calibration):
    """A copy in the mode that a calibration stands for, with moments of all images together for ``batch``."""
    network = copy.deepcopy(model).train(calibration == "train")
    if calibration != "batch":
        return network
    with torch.no_grad():
        for name, keep in (mask or {}).items():
            network.get_parameter(name).mul_(keep)
    measure(network, torch.cat([images for images, _ in batches]))
    return network


def rounds_by_sorting(score, mask, density, rounds, revives):
    """Score, sort, keep the best; the density falls by the same factor in each round."""
    start, total = mask, sum(entry.numel() for entry in mask.values())
    begin = sum(int(entry.sum()) for entry in mask.values()) / total
    for number in range(1, rounds + 1):
        scores, allowed = score(mask), start if revives else mask
        ranked = sorted(
            (
                (float(scores[name][index]), name, index)
                for name in scores
                for index in map(tuple, allowed[name].nonzero().tolist())
            ),
            reverse=True,
        )
        mask = {name: torch.zeros_like(entry) for name, entry in mask.items()}
        for _, name, index in ranked[: round(begin * (density / begin) ** (number / rounds) * total)]:
            mask[name][index] = True
    return mask


def labelled(case, seed, sizes=(3, 2)):
    """A network with two classes, and batches of unequal size."""
    model, x = build(case, seed, sum(sizes))
    y = torch.randint(0, 2, (sum(sizes),), generator=torch.Generator().manual_seed(seed))
    return model, list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def prospr(model, parts, lr, momentum=0.0, mask=None):
    """|d loss / d mask| of the weights that are there. Each part but the last is a step of gradient descent.

    The model runs in the mode it is in; buffers are not kept.
    """
    state = {name: entry.detach().clone().requires_grad_() for name, entry in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    keep = {name: torch.ones_like(state[name]) if mask is None else mask[name].double() for name in prunable(model)}
    entries = {name: kept.detach().clone().requires_grad_() for name, kept in keep.items()}
    state |= {name: entry * state[name] for name, entry in entries.items()}
    velocity = {name: torch.zeros_like(entry) for name, entry in state.items()}

    def loss(x, y):
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            return F.cross_entropy(functional_call(model, state | buffers, (x,)), y)

    for x, y in parts[:-1]:
        gradient = torch.autograd.grad(loss(x, y), list(state.values()), create_graph=True)
        for name, part in zip(state, gradient, strict=True):
            velocity[name] = momentum * velocity[name] + part * keep.get(name, 1)
        state = {name: entry - lr * velocity[name] for name, entry in state.items()}
    found = torch.autograd.grad(loss(*parts[-1]), list(entries.values()))
    return {name: (part * keep[name]).abs() for name, part in zip(entries, found, strict=True)}
