"""Searches for a mask, written out in float64: choices by sorting, steps by their formulas, paths one by one.

``source`` gives the generator of a stream of random numbers, ``start`` is the mask of what may be kept, ``target`` how
many weights are to be kept, in all or of each. Images and labels are in canonical order.
"""

import copy
import math
from functools import partial

import torch
from torch import nn
from torch.func import functional_call

from brute_force.expand import Graph
from brute_force.gradients import prepared
from brute_force.paths import enumerate_paths, units_of


def cts(model, x, y, start, target, source, *, epochs, batch_size, lr, loss="cross-entropy"):
    """Logits of concrete masks by Adam, with GradBalance; and its multiplier in the end."""
    theta, shapes = _theta(model, start), {name: kept.shape for name, kept in start.items()}
    kept, there = sum(_counts(target).values()), sum(int(entry.sum()) for entry in start.values())
    first = math.log(kept / there / (1 - kept / there))
    logits = {name: torch.full(shape, first, dtype=torch.float64) for name, shape in shapes.items()}
    adam, multiplier = Adam(lr, 1e-10), None
    for number, (epoch, images, labels) in enumerate(_steps(x, y, source, epochs, batch_size)):
        noise, uniform = source(12, number), {}
        for name, shape in shapes.items():
            uniform[name] = torch.rand(shape, generator=noise, dtype=torch.float64).clamp(1e-10, 1 - 1e-10)
        leaves = {name: logit.clone().requires_grad_() for name, logit in logits.items()}
        weights = {}
        for name, leaf in leaves.items():
            relaxed = 1 / (1 + torch.exp(-1.5 * (leaf + torch.log(uniform[name] / (1 - uniform[name])))))
            weights[name] = theta[name] * relaxed
        outputs = _outputs(model, weights, images)
        total = _cross_entropy(outputs, labels)
        if loss == "kl":
            sparse, dense = outputs.softmax(1), _outputs(model, theta, images).softmax(1)
            total = (sparse * (sparse / dense).log()).sum() / len(images)
        slopes = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
        expected, spread = 0.0, {}
        for name, logit in logits.items():
            share = 1 / (1 + torch.exp(-logit))
            expected += float((share * start[name]).sum())
            spread[name] = share * (1 - share) * start[name] / (1.1 * kept)
        ratio = _norm(slopes) / _norm(spread) if expected > 1.1 * kept else 0.0
        multiplier = ratio if multiplier is None else 0.99 * multiplier + 0.01 * ratio
        late = epoch >= int(0.88 * epochs) - 1 and int(0.88 * epochs) > 1
        adam.step(logits, {n: slopes[n] + multiplier * spread[n] for n in logits}, 0.1 if late else 1.0)
    return logits, multiplier


def edge_popup(model, x, y, start, target, source, *, epochs, batch_size, lr):
    """Scores by SGD with momentum and decay, where the mask of the largest passes gradients as if it were they."""
    theta, scores, velocity = _theta(model, start), {}, {}
    for number, (name, kept) in enumerate(start.items()):
        bound = 1 / math.sqrt(kept[0].numel())
        drawn = torch.rand(kept.shape, generator=source(11, number), dtype=torch.float64)
        scores[name] = bound * (2 * drawn - 1)
    for epoch, images, labels in _steps(x, y, source, epochs, batch_size):
        mask = best({name: score.abs() for name, score in scores.items()}, start, target)
        leaves = {name: kept.double().requires_grad_() for name, kept in mask.items()}
        loss = _cross_entropy(_outputs(model, {n: theta[n] * leaf for n, leaf in leaves.items()}, images), labels)
        slopes = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        rate = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for name, score in scores.items():
            slope = slopes[name] * score.sign() + 1e-4 * score
            velocity[name] = slope if name not in velocity else 0.9 * velocity[name] + slope
            scores[name] = score - rate * velocity[name]
    return {name: score.abs() for name, score in scores.items()}


def dpai(model, x, start, target, source, *, steps, lr, alpha, beta):
    """Scores by Adam along the paths that every entry of the mask is on, or would open; units that were on none."""
    graph = Graph(model, x[:1], {name: kept.double() for name, kept in start.items()})
    paths = []
    for path in enumerate_paths(graph):
        fixed = math.prod(edge.fixed for edge in path.edges)
        paths.append((fixed, [edge.weight for edge in path.edges if edge.weight is not None]))
    layers = {name: _units(model, name) for name in start}
    scores, adam = {}, Adam(lr)
    for number, (name, kept) in enumerate(start.items()):
        scores[name] = torch.randn(kept.shape, generator=source(11, number), dtype=torch.float64)
    idle = 0
    for _ in range(steps):
        mask = best({name: score.abs() for name, score in scores.items()}, start, target)
        total, opened = _opened(paths, mask)
        ascent = {}
        for name, score in scores.items():
            bonus, (units, kernels) = torch.zeros(score.numel(), dtype=torch.float64), layers[name]
            kept, through = mask[name].flatten(), opened[name]
            for groups, share in ((units, 1 - beta), (kernels, beta)):
                for group in groups:
                    if not any(kept[j] and through[j] > 0 for j in group):
                        bonus[group] += share
                        idle += groups is units
            ascent[name] = score.sign() * (through / total * (1 - alpha + alpha * bonus)).view_as(score)
        adam.step(scores, {name: -slope for name, slope in ascent.items()})
    return {name: score.abs() for name, score in scores.items()}, idle


def widetopo(model, batches, start, target, source, *, iterations, restorations, epsilon, calibration="batch", chosen):
    """Every choice on the way: what weights are ranked by, what they are chosen from, and how many are kept.

    ``chosen`` are the masks that were chosen: where weights tie, as those on no path do, any of them may be kept.
    """
    mask, masks, whole, end = start, iter(chosen), _counted(start, target), _counts(target)
    as_asked = dict if isinstance(target, dict) else lambda counts: counts[""]
    for phase in range(1 + restorations):
        first = {n: _fallen(whole[n], end[n], 1 - 0.5**phase) for n in end}
        if phase > 0:
            noise = source(phase * iterations, 23)
            for step in range(1, 51):
                counts = {n: round(end[n] + (first[n] - end[n]) * step / 50) for n in end}
                yield {name: _roomy(kept, noise) for name, kept in mask.items()}, start, as_asked(counts)
                mask = next(masks)
        for step in range(1, iterations + 1):
            stream = partial(source, phase * iterations + step - 1)
            counts = {n: _fallen(first[n], end[n], step / iterations) for n in end}
            yield widetopo_scores(model, batches, mask, stream, epsilon, calibration), mask, as_asked(counts)
            mask = next(masks)


def widetopo_scores(model, batches, mask, source, epsilon, calibration):
    """What the rounds of WideTopo rank weights by."""
    network = prepared(model, batches, mask, calibration)
    theta, kept = _theta(model, mask), {name: entry.double() for name, entry in mask.items()}
    other = {name: entry.detach() for name, entry in network.named_parameters() if name not in mask}
    scores = {name: torch.zeros_like(weight) for name, weight in theta.items()}
    for number, (x, _) in enumerate(batches):
        leaves = {name: entry.clone().requires_grad_() for name, entry in {**theta, **other}.items()}
        outputs = _outputs(network, leaves, x)
        v = torch.randn(outputs.shape, generator=source(number, 21), dtype=torch.float64)
        slopes = torch.autograd.grad((v * outputs).sum(), list(leaves.values()), create_graph=True)
        trace = sum((slope**2 * kept.get(name, 1)).sum() for name, slope in zip(leaves, slopes, strict=True))
        own = [leaves[name] for name in theta]
        for name, slope in zip(theta, torch.autograd.grad(trace, own, materialize_grads=True), strict=True):
            scores[name] += 0.01 * (theta[name] * slope).abs()
        stream = source(number, 22)
        there = x + epsilon * torch.randn(x.shape, generator=stream, dtype=torch.float64)
        moved = {}
        for name, weight in theta.items():
            moved[name] = weight + epsilon * torch.randn(weight.shape, generator=stream, dtype=torch.float64)
        entries = {name: entry.clone().requires_grad_() for name, entry in kept.items()}

        def difference(images, weights, entries=entries):
            before, after = ({n: w[n] * entry for n, entry in entries.items()} for w in (theta, weights))
            return _outputs(network, after, images) - _outputs(network, before, images)

        mixed = ((difference(there, moved) - difference(x, moved)) ** 2).sum() / epsilon**2
        for name, slope in zip(entries, torch.autograd.grad(mixed, list(entries.values())), strict=True):
            scores[name] += (slope * kept[name]).abs()
    density = sum(float(entry.sum()) for entry in kept.values()) / sum(entry.numel() for entry in kept.values())
    for name, score in scores.items():
        for index in mask[name].nonzero().tolist():
            row, column = kept[name][index[0]].sum(), kept[name][:, index[1]].sum()
            score[tuple(index)] *= float(row * column) ** (math.log10(density) / 5)
    return scores


class Adam:
    """Its state, beside the tensors that it moves."""

    def __init__(self, lr, epsilon=1e-8):
        self.lr, self.epsilon, self.count, self.first, self.second = lr, epsilon, 0, {}, {}

    def step(self, values, slopes, factor=1.0):
        self.count += 1
        for name, slope in slopes.items():
            self.first[name] = 0.9 * self.first.get(name, 0.0) + 0.1 * slope
            self.second[name] = 0.999 * self.second.get(name, 0.0) + 0.001 * slope**2
            mean, square = self.first[name] / (1 - 0.9**self.count), self.second[name] / (1 - 0.999**self.count)
            values[name] = values[name] - self.lr * factor * mean / (square.sqrt() + self.epsilon)


def best(values, allowed, target):
    """The mask of the largest values that are allowed, so many of each or in all."""
    mask = {name: torch.zeros_like(kept) for name, kept in allowed.items()}
    for names, count in _groups(allowed, target):
        ranked = [(float(values[n][i]), n, i) for n in names for i in map(tuple, allowed[n].nonzero().tolist())]
        for _, n, index in sorted(ranked, reverse=True)[:count]:
            mask[n][index] = True
    return mask


def is_best(mask, values, allowed, target):
    """Whether a mask is one of those: of values that are equal but for rounding any may be kept."""
    for names, count in _groups(allowed, target):
        kept = torch.cat([values[n][mask[n] & allowed[n]] for n in names])
        gone = torch.cat([values[n][~mask[n] & allowed[n]] for n in names])
        more = any((mask[n] & ~allowed[n]).any() for n in names)
        swapped = len(kept) and len(gone) and kept.min() < gone.max() - 1e-10 * gone.abs().max()
        if more or swapped or len(kept) != count:
            return False
    return True


def _groups(allowed, target):
    """Names of weights that are ranked together, and how many of them are kept."""
    return [([name], target[name]) for name in allowed] if isinstance(target, dict) else [(list(allowed), target)]


def _counts(target):
    return target if isinstance(target, dict) else {"": target}


def _counted(mask, target):
    counts = {name: int(kept.sum()) for name, kept in mask.items()}
    return counts if isinstance(target, dict) else {"": sum(counts.values())}


def _theta(model, mask):
    return {name: model.get_parameter(name).detach() * kept for name, kept in mask.items()}


def _outputs(model, weights, x):
    """Of a copy in its mode, whose statistics are thrown away."""
    return functional_call(copy.deepcopy(model), weights, (x,))


def _cross_entropy(outputs, labels):
    losses = [-(output[label].exp() / output.exp().sum()).log() for output, label in zip(outputs, labels, strict=True)]
    return sum(losses) / len(losses)


def _norm(tensors):
    return math.sqrt(sum(float((tensor**2).sum()) for tensor in tensors.values()))


def _steps(x, y, source, epochs, size):
    """Epoch, images and labels of every step: steps of an epoch differ by one image at most."""
    count = math.ceil(len(x) / size)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=source(13, epoch)).tolist()
        for step in range(count):
            length = len(x) // count + (step < len(x) % count)
            chosen, order = order[:length], order[length:]
            yield epoch, x[chosen], y[chosen]


def _fallen(first, last, share):
    """A number on its exponential way down; towards zero as towards a half."""
    if share == 1 or first == last:
        return last
    return round(math.exp(math.log(first) + (math.log(max(last, 0.5)) - math.log(first)) * share))


def _roomy(kept, noise):
    """2 where a weight is, elsewhere what is missing of its row times what is of its column, and its kernel's noise."""
    ranks = torch.full(kept.shape, 2.0, dtype=torch.float64)
    drawn = 1e-5 * torch.randn(kept.shape[:2], generator=noise, dtype=torch.float64)
    for index in (~kept).nonzero().tolist():
        row, column = kept[index[0]], kept[:, index[1]]
        missing = (1 - int(row.sum()) / row.numel()) * (1 - int(column.sum()) / column.numel())
        ranks[tuple(index)] = missing + float(drawn[index[0], index[1]])
    return ranks


def _units(model, name):
    """Flat indices of the weights of each output unit and of each kernel."""
    module = model.get_submodule(name.removesuffix(".weight"))
    transposed = isinstance(module, nn.ConvTranspose2d)
    outputs, _, kernels = units_of(tuple(module.weight.shape), getattr(module, "groups", 1), transposed)
    return list(outputs.values()), list(kernels.values())


def _opened(paths, mask):
    """How many paths there are, and for each weight those that are there with it, averages as their share."""
    kept = {name: entry.flatten().tolist() for name, entry in mask.items()}
    opened = {name: torch.zeros(entry.numel(), dtype=torch.float64) for name, entry in mask.items()}
    total = 0.0
    for fixed, used in paths:
        missing = [place for place, (name, j) in enumerate(used) if not kept[name][j]]
        total += fixed * (not missing)
        for place, (name, j) in enumerate(used):
            if not missing or missing == [place]:
                opened[name][j] += fixed
    return total, opened
