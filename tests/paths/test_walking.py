"""Random walks: frequencies of use against exact probabilities, and weights that are made of others."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brute_force.cases import Branches, Wired, perceptron
from brute_force.norms import standardised
from brute_force.paths import Layer
from pathex.errors import UnsupportedOperation
from pathex.paths import Walker
from paths.oracle import draws

WALKS = 40_000


def walked(model, shape, walks, **options):
    """Uses of every weight of two dimensions or more."""
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    walker = Walker(model, torch.randn(1, *shape), weights, torch.Generator().manual_seed(5), **options)
    used = walker.walk(walks)
    return {n: torch.bincount(used[n], minlength=w.numel()).view(w.shape).double().numpy() for n, w in weights.items()}


def layers_of(model):
    kinds = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    return [
        Layer(module.weight.detach().numpy(), getattr(module, "groups", 1), isinstance(module, nn.ConvTranspose2d))
        for module in modules
    ]


def assert_likely(uses, forward, back):
    """Within five standard errors of half of the walks forward and half back."""
    for used, there, here in zip(uses, forward, back, strict=True):
        spread = np.sqrt((there * (1 - there) + here * (1 - here)) * WALKS / 2)
        assert (np.abs(used - (there + here) * WALKS / 2) <= 5 * spread + 2).all()
        assert used.sum() == pytest.approx(WALKS)


def uniform(units):
    return np.full(units, 1 / units)


class Joined(tuple):
    """Branches that are concatenated over channels; a plain tuple is of branches that are added up."""


def passed(part, at, back):
    """Uses of the layers of a part, in their order, and where walks are behind it; any position of a unit is as likely.

    A list is of parts one after another; an empty one passes what comes.
    """
    if isinstance(part, Layer):
        units = part.units[int(back)]
        features = max(1, units // len(at))
        use = part.use(np.repeat(at / features, features).reshape(units, -1).sum(1), back)
        return [use], part.passed(use, back)
    if isinstance(part, list):
        uses = []
        for each in reversed(part) if back else part:
            found, at = passed(each, at, back)
            uses = found + uses if back else uses + found
        return uses, at
    arriving = [at] * len(part)
    if isinstance(part, Joined) and back:
        # Each branch is passed by all walks: they are drawn anew from those that come to it.
        split = np.split(at, np.cumsum([branch.units[1] for branch in part])[:-1])
        arriving = [own / own.sum() for own in split]
    uses, ends = zip(*(passed(each, own, back) for each, own in zip(part, arriving, strict=True)), strict=True)
    join = np.concatenate if isinstance(part, Joined) and not back else sum
    return [use for found in uses for use in found], join(ends) / len(part)


def exact(part, inputs, outputs):
    """Probabilities of use of walks forward and of those back."""
    return passed(part, uniform(inputs), False)[0], passed(part, uniform(outputs), True)[0]


def grouped():
    """With groups, pools and features."""
    first, second = nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
    norm, pool = nn.BatchNorm2d(6), nn.MaxPool2d(3, 2, padding=1)
    return nn.Sequential(first, norm, nn.ReLU(True), pool, second, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3))


@pytest.mark.parametrize(
    ("make", "shape", "outputs", "seed"),
    [(grouped, (4, 6, 6), 3, 3), *((lambda: perceptron(3, 6, 5, 4), (3,), 4, seed) for seed in range(3))],
)
def test_chains(make, shape, outputs, seed):
    model = draws(make(), seed)
    assert_likely(walked(model, shape, WALKS).values(), *exact(layers_of(model), shape[0], outputs))


def test_residual_blocks_take_both_branches():
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(True), nn.Conv2d(3, 3, 1))
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]
    model = draws(nn.Sequential(nn.Conv2d(2, 3, 1), Branches(body, nn.Identity()), *head), 4)
    stem, one, two, last = layers_of(model)
    assert_likely(walked(model, (2, 4, 4), WALKS).values(), *exact([stem, ([one, two], []), last], 2, 2))


def test_concatenated_branches_share_the_walks():
    pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(2, 3, 1))
    branches = Branches(nn.Conv2d(2, 2, 3, padding=1), pooled, join="cat")
    model = draws(nn.Sequential(branches, nn.ReLU(), nn.Conv2d(5, 2, 4)), 6)
    left, right, last = layers_of(model)
    assert_likely(walked(model, (2, 4, 4), WALKS).values(), *exact([Joined((left, right)), last], 2, 2))


def _made(net, x):
    """Weights that are moved, standardised, cut from one parameter, or used in an auxiliary head only."""
    flat = net.conv.reshape(1, 4, -1)
    x = F.conv2d(x, F.batch_norm(flat, None, None, training=True).reshape_as(net.conv)).mean((2, 3))
    x = F.linear(x, net.moved.t())
    one, two = net.cut.chunk(2)
    return F.linear(x, one) + F.linear(x, two), F.linear(x, net.aside)


def test_weights_made_of_parameters():
    shapes = {"conv": (4, 2, 3, 3), "moved": (4, 6), "cut": (8, 6), "aside": (2, 6)}
    model = draws(Wired(_made, **{name: nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()}), 8)
    uses = walked(model, (2, 5, 5), WALKS)
    assert not uses["aside"].any()
    conv = torch.from_numpy(standardised(model.conv.detach().numpy(), [1.0] * 4, 1e-5))
    layers = [Layer(weight.detach().numpy()) for weight in (conv, model.moved.t(), *model.cut.chunk(2))]
    found = (uses["conv"], uses["moved"].T, *np.split(uses["cut"], 2))
    # Both halves are passed by all walks.
    assert_likely(found, *exact([*layers[:2], tuple(layers[2:])], 2, 4))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda net, x: F.linear(x, net.a + net.b), "does not keep their entries in place"),
        (lambda net, x: x @ net.a + F.linear(x, net.b), "uses 'a' as no convolution"),
    ],
)
def test_weights_that_cannot_be_followed(form, message):
    weights = {name: nn.Parameter(torch.randn(3, 3)) for name in "ab"}
    with pytest.raises(UnsupportedOperation, match=message):
        walked(Wired(form, **weights), (3,), 10)


def test_a_walk_goes_through_and_keeps_to_the_weights_it_may_use():
    model = perceptron(3, 6, 5, 4).double()
    first, second, third = walked(model, (3,), 1).values()
    assert first.sum() == second.sum() == third.sum() == 1
    assert second.sum(0).argmax() == first.sum(1).argmax() and third.sum(0).argmax() == second.sum(1).argmax()
    keep = {f"{place}.weight": torch.rand(model[place].weight.shape) < 0.5 for place in (0, 2, 4)}
    uses = walked(model, (3,), 500, keep=keep)
    assert all(uses[name].any() and not uses[name][~keep[name].numpy()].any() for name in keep)
    nothing = walked(model, (3,), 500, keep={name: torch.zeros_like(entry) for name, entry in keep.items()})
    assert not any(used.any() for used in nothing.values())
