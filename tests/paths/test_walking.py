"""Random walks: frequencies of use against exact probabilities, and weights that are made of others."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brute_force.cases import Branches, Wired, draw, perceptron
from brute_force.node_paths import Layer
from pathex.errors import UnsupportedOperation
from pathex.paths import Walker

WALKS = 40_000


def walked(model, shape, walks, **options):
    """Uses of every weight of two dimensions or more."""
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    walker = Walker(model, torch.randn(1, *shape), weights, torch.Generator().manual_seed(5), **options)
    used = walker.walk(walks)
    return {n: torch.bincount(used[n], minlength=w.numel()).view(w.shape).double().numpy() for n, w in weights.items()}


def layers_of(model):
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            transposed = isinstance(module, nn.ConvTranspose2d)
            layers[name] = Layer(module.weight.detach().numpy(), getattr(module, "groups", 1), transposed)
    return layers


def assert_likely(uses, forward, back):
    """Within five standard errors of half of the walks forward and half back."""
    for used, there, here in zip(uses, forward, back, strict=True):
        spread = np.sqrt((there * (1 - there) + here * (1 - here)) * WALKS / 2)
        assert (np.abs(used - (there + here) * WALKS / 2) <= 5 * spread + 2).all()
        assert used.sum() == pytest.approx(WALKS)


def uniform(units):
    return np.full(units, 1 / units)


def of_chain(layers):
    """Probabilities of use of layers one after another; any position of a channel is as likely."""
    forward, back, at = [], [], uniform(layers[0].units[0])
    for layer in layers:
        features = layer.units[0] // len(at)
        forward.append(layer.use(np.repeat(at / features, features)))
        at = layer.passed(forward[-1])
    at = uniform(layers[-1].units[1])
    for layer in reversed(layers):
        back.insert(0, layer.use(at.reshape(layer.units[1], -1).sum(1), back=True))
        at = layer.passed(back[0], back=True)
    return forward, back


def grouped():
    """With groups, pools and features."""
    first, second = nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
    norm, pool = nn.BatchNorm2d(6), nn.MaxPool2d(3, 2, padding=1)
    return nn.Sequential(first, norm, nn.ReLU(True), pool, second, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3))


@pytest.mark.parametrize(
    ("make", "shape", "seed"),
    [(grouped, (4, 6, 6), 3), *((lambda: perceptron(3, 6, 5, 4), (3,), seed) for seed in range(3))],
)
def test_chains(make, shape, seed):
    model = make().double()
    draw(model, seed)
    assert_likely(walked(model, shape, WALKS).values(), *of_chain([*layers_of(model).values()]))


def test_a_walk_goes_through():
    model = perceptron(3, 6, 5, 4).double()
    one_way = walked(model, (3,), 1)
    assert all(used.sum() == 1 for used in one_way.values())
    assert one_way["2.weight"].sum(0).argmax() == one_way["0.weight"].sum(1).argmax()
    assert one_way["4.weight"].sum(0).argmax() == one_way["2.weight"].sum(1).argmax()


def test_residual_blocks_take_both_branches():
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(True), nn.Conv2d(3, 3, 1))
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]
    model = nn.Sequential(nn.Conv2d(2, 3, 1), Branches(body, nn.Identity()), *head).double()
    draw(model, 4)
    stem, one, two, last = layers_of(model).values()
    use_stem = stem.use(uniform(2))
    at = stem.passed(use_stem)
    use_one = one.use(at)
    use_two = two.use(one.passed(use_one))
    use_last = last.use((at + two.passed(use_two)) / 2)
    back_last = last.use(uniform(2), True)
    end = last.passed(back_last, True)
    back_two = two.use(end, True)
    back_one = one.use(two.passed(back_two, True), True)
    back_stem = stem.use((end + one.passed(back_one, True)) / 2, True)
    forward, back = (use_stem, use_one, use_two, use_last), (back_stem, back_one, back_two, back_last)
    assert_likely(walked(model, (2, 4, 4), WALKS).values(), forward, back)


def test_concatenated_branches_share_the_walks():
    pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(2, 3, 1))
    model = nn.Sequential(Branches(nn.Conv2d(2, 2, 3, padding=1), pooled, join="cat"), nn.ReLU(), nn.Conv2d(5, 2, 4))
    draw(model.double(), 6)
    left, right, last = layers_of(model).values()
    sides = [side.use(uniform(2)) for side in (left, right)]
    use_last = last.use(np.concatenate([left.passed(sides[0]), right.passed(sides[1])]) / 2)
    back_last = last.use(uniform(2), True)
    end = last.passed(back_last, True)
    # Each layer is passed by all walks: they are drawn anew from those that come to its branch.
    backs = [side.use(part / part.sum(), True) for side, part in ((left, end[:2]), (right, end[2:]))]
    assert_likely(walked(model, (2, 4, 4), WALKS).values(), (*sides, use_last), (*backs, back_last))


def _made(net, x):
    """Weights that are moved, standardised, cut from one parameter, or used in an auxiliary head only."""
    flat = net.conv.reshape(1, 4, -1)
    x = F.conv2d(x, F.batch_norm(flat, None, None, training=True).reshape_as(net.conv)).mean((2, 3))
    x = F.linear(x, net.moved.t())
    one, two = net.cut.chunk(2)
    return F.linear(x, one) + F.linear(x, two), F.linear(x, net.aside)


def test_weights_made_of_parameters():
    shapes = {"conv": (4, 2, 3, 3), "moved": (4, 6), "cut": (8, 6), "aside": (2, 6)}
    model = Wired(_made, **{name: nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()}).double()
    draw(model, 8)
    uses = walked(model, (2, 5, 5), WALKS)
    flat = model.conv.detach().numpy().reshape(4, -1)
    standard = Layer(
        ((flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + 1e-5)).reshape(4, 2, 3, 3)
    )
    moved = Layer(model.moved.detach().numpy().T)
    halves = [Layer(half) for half in np.split(model.cut.detach().numpy(), 2)]
    use_conv = standard.use(uniform(2))
    use_moved = moved.use(standard.passed(use_conv))
    use_halves = [half.use(moved.passed(use_moved)) for half in halves]
    # Both halves are passed by all walks.
    back_halves = [half.use(uniform(4), True) for half in halves]
    back_moved = moved.use(np.concatenate(back_halves).sum(0) / 2, True)
    back_conv = standard.use(moved.passed(back_moved, True), True)
    assert not uses["aside"].any()
    found = (uses["conv"], uses["moved"].T, *np.split(uses["cut"], 2))
    assert_likely(found, (use_conv, use_moved, *use_halves), (back_conv, back_moved, *back_halves))


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


def test_walks_keep_to_the_weights_they_may_use():
    model = perceptron(3, 6, 4).double()
    keep = {"0.weight": torch.rand(6, 3) < 0.5, "2.weight": torch.rand(4, 6) < 0.5}
    uses = walked(model, (3,), 500, keep=keep)
    assert all(uses[name].any() and not uses[name][~keep[name].numpy()].any() for name in keep)
    nothing = walked(model, (3,), 500, keep={name: torch.zeros_like(entry) for name, entry in keep.items()})
    assert not any(used.any() for used in nothing.values())
