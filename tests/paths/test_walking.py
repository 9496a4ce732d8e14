"""Random walks: frequencies of use against exact probabilities, and weights that are made of others."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brute_force.cases import Branches, Wired, draw
from brute_force.walks import exact, exact_back, passed, passed_back, single_walks
from pathex.errors import UnsupportedOperation
from pathex.paths import Walker

WALKS = 40_000


def walked(model: nn.Module, shape: tuple[int, ...], walks: int, **options: Any) -> dict[str, np.ndarray]:
    """Uses of every weight of two dimensions or more."""
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    walker = Walker(model, torch.randn(1, *shape), weights, torch.Generator().manual_seed(5), **options)
    used = walker.walk(walks)
    return {n: torch.bincount(used[n], minlength=w.numel()).view(w.shape).double().numpy() for n, w in weights.items()}


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: entry.detach().numpy() for name, entry in model.named_parameters() if entry.dim() > 1}


def assert_likely(uses: dict[str, np.ndarray], forward: dict[str, Any], back: dict[str, Any], walks: int) -> None:
    """Within five standard errors of half of the walks forward and half back."""
    assert sorted(uses) == sorted(forward) == sorted(back)
    for name, used in uses.items():
        there, here = np.asarray(forward[name]), np.asarray(back[name])
        mean = (there + here) * walks / 2
        spread = np.sqrt((there * (1 - there) + here * (1 - here)) * walks / 2)
        assert (np.abs(used - mean) <= 5 * spread + 2).all(), name
        assert used.sum() == pytest.approx(walks)


def uniform(units: int) -> np.ndarray:
    return np.full(units, 1 / units)


def of_perceptron(weights: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Exact probabilities of use, forward and back."""
    at, forward = uniform(weights[0].shape[1]), []
    for weight in weights:
        forward.append(exact(weight, at))
        at = passed(weight, forward[-1])
    at, back = uniform(weights[-1].shape[0]), []
    for weight in reversed(weights):
        back.insert(0, exact_back(weight, at))
        at = passed_back(weight, back[0])
    return forward, back


def test_single_walks_of_the_twin_have_the_exact_probabilities() -> None:
    source = np.random.default_rng(0)
    weights = [source.normal(size=shape) for shape in ((5, 3), (4, 5), (2, 4))]
    forward, back = single_walks(weights, WALKS // 4, 1), single_walks(weights, WALKS // 4, 2, back=True)
    expected, expected_back = of_perceptron(weights)
    for found, want in zip([*forward, *back], [*expected, *expected_back], strict=True):
        assert (np.abs(found - want * WALKS / 4) <= 5 * np.sqrt(want * (1 - want) * WALKS / 4) + 2).all()


@pytest.mark.parametrize("seed", range(3))
def test_perceptron(seed: int) -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4)).double()
    draw(model, seed)
    weights = arrays(model)
    forward, back = (dict(zip(weights, use, strict=True)) for use in of_perceptron([*weights.values()]))
    assert_likely(walked(model, (3,), WALKS), forward, back, WALKS)
    # Every walk goes through: as many leave a unit as arrive at it.
    one_way = walked(model, (3,), 1)
    assert all(used.sum() == 1 for used in one_way.values())
    assert one_way["2.weight"].sum(0).argmax() == one_way["0.weight"].sum(1).argmax()
    assert one_way["4.weight"].sum(0).argmax() == one_way["2.weight"].sum(1).argmax()


def test_convolutions_with_groups_pools_and_features() -> None:
    first, second = nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
    norm, pool = nn.BatchNorm2d(6), nn.MaxPool2d(3, 2, padding=1)
    model = nn.Sequential(first, norm, nn.ReLU(True), pool, second, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    draw(model.double(), 3)
    a, b, c = arrays(model).values()
    use_a = exact(a, uniform(4), 2)
    use_b = exact(b, passed(a, use_a, 2), 2, True)
    features = np.repeat(passed(b, use_b, 2, True) / 9, 9)  # any position of the channel
    use_c = exact(c, features)
    back_c = exact_back(c, uniform(3))
    back_b = exact_back(b, passed_back(c, back_c).reshape(4, 9).sum(1), 2, True)
    back_a = exact_back(a, passed_back(b, back_b, 2, True), 2)
    names = list(arrays(model))
    forward, back = [dict(zip(names, u, strict=True)) for u in ((use_a, use_b, use_c), (back_a, back_b, back_c))]
    assert_likely(walked(model, (4, 6, 6), WALKS), forward, back, WALKS)


def test_residual_blocks_take_both_branches() -> None:
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(True), nn.Conv2d(3, 3, 1))
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]
    model = nn.Sequential(nn.Conv2d(2, 3, 1), Branches(body, nn.Identity()), *head).double()
    draw(model, 4)
    names = list(arrays(model))
    stem, one, two, last = arrays(model).values()
    use_stem = exact(stem, uniform(2))
    at = passed(stem, use_stem)
    use_one = exact(one, at)
    use_two = exact(two, passed(one, use_one))
    use_last = exact(last, (at + passed(two, use_two)) / 2)
    back_last = exact_back(last, uniform(2))
    end = passed_back(last, back_last)
    back_two = exact_back(two, end)
    back_one = exact_back(one, passed_back(two, back_two))
    back_stem = exact_back(stem, (end + passed_back(one, back_one)) / 2)
    forward = dict(zip(names, (use_stem, use_one, use_two, use_last), strict=True))
    back = dict(zip(names, (back_stem, back_one, back_two, back_last), strict=True))
    assert_likely(walked(model, (2, 4, 4), WALKS), forward, back, WALKS)


def test_concatenated_branches_share_the_walks() -> None:
    pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(2, 3, 1))
    model = nn.Sequential(Branches(nn.Conv2d(2, 2, 3, padding=1), pooled, join="cat"), nn.ReLU(), nn.Conv2d(5, 2, 4))
    draw(model.double(), 6)
    names = list(arrays(model))
    left, right, last = arrays(model).values()
    use_left, use_right = exact(left, uniform(2)), exact(right, uniform(2))
    use_last = exact(last, np.concatenate([passed(left, use_left), passed(right, use_right)]) / 2)
    back_last = exact_back(last, uniform(2))
    end = passed_back(last, back_last)
    # Each layer is passed by all walks: they are drawn anew from those that come to its branch.
    back_left, back_right = (exact_back(w, part / part.sum()) for w, part in ((left, end[:2]), (right, end[2:])))
    forward = dict(zip(names, (use_left, use_right, use_last), strict=True))
    back = dict(zip(names, (back_left, back_right, back_last), strict=True))
    assert_likely(walked(model, (2, 4, 4), WALKS), forward, back, WALKS)


class Made(nn.Module):
    """Weights that are moved, standardised, cut from one parameter, or used in an auxiliary head only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.moved = nn.Parameter(torch.empty(4, 2, 3, 3)), nn.Parameter(torch.empty(4, 6))
        self.cut, self.aside = nn.Parameter(torch.empty(8, 6)), nn.Parameter(torch.empty(2, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = self.conv.reshape(1, 4, -1)
        x = F.conv2d(x, F.batch_norm(flat, None, None, training=True).reshape_as(self.conv)).mean((2, 3))
        x = F.linear(x, self.moved.t())
        one, two = self.cut.chunk(2)
        return F.linear(x, one) + F.linear(x, two), F.linear(x, self.aside)


def test_weights_made_of_parameters() -> None:
    model = Made().double()
    draw(model, 8)
    uses = walked(model, (2, 5, 5), WALKS)
    flat = model.conv.detach().numpy().reshape(4, -1)
    standard = ((flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + 1e-5)).reshape(4, 2, 3, 3)
    moved, cut = model.moved.detach().numpy().T, model.cut.detach().numpy()
    use_conv = exact(standard, uniform(2))
    use_moved = exact(moved, passed(standard, use_conv))
    at = passed(moved, use_moved)
    back_cut = np.concatenate([exact_back(part, uniform(4)) for part in (cut[:4], cut[4:])])
    back_moved = exact_back(moved, back_cut.sum(0) / 2)
    back_conv = exact_back(standard, passed_back(moved, back_moved))
    assert not uses.pop("aside").any()
    # Both halves of `cut` are passed by all walks.
    uses["one"], uses["two"] = np.split(uses.pop("cut"), 2)
    forward = {"conv": use_conv, "moved": use_moved.T, "one": exact(cut[:4], at), "two": exact(cut[4:], at)}
    back = {"conv": back_conv, "moved": back_moved.T, "one": back_cut[:4], "two": back_cut[4:]}
    assert_likely(uses, forward, back, WALKS)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda net, x: F.linear(x, net.a + net.b), "does not keep their entries in place"),
        (lambda net, x: x @ net.a + F.linear(x, net.b), "uses 'a' as no convolution"),
    ],
)
def test_weights_that_cannot_be_followed(form: Any, message: str) -> None:
    weights = {name: nn.Parameter(torch.randn(3, 3)) for name in "ab"}
    with pytest.raises(UnsupportedOperation, match=message):
        walked(Wired(form, **weights), (3,), 10)


def test_walks_keep_to_the_weights_they_may_use() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    keep = {"0.weight": torch.rand(6, 3) < 0.5, "2.weight": torch.rand(4, 6) < 0.5}
    uses = walked(model, (3,), 500, keep=keep)
    assert all(uses[name].any() and not uses[name][~keep[name].numpy()].any() for name in keep)
    nothing = walked(model, (3,), 500, keep={name: torch.zeros_like(entry) for name, entry in keep.items()})
    assert not any(used.any() for used in nothing.values())
