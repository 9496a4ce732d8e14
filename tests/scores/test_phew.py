"""PHEW: the order of first use, whole walks in every mask, options and refusals."""

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import build, perceptron, random_mask
from pathex.masks import prunable_weights
from pathex.paths import connectivity
from pathex.scores import Phew, Problem, read_batches


def score(model, x, **options):
    about = {name: options.pop(name) for name in ("mask", "seed", "round") if name in options}
    return Phew(**options)(Problem(model, prunable_weights(model), read_batches(x), **about))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return perceptron(10, 40, 40, 5)


X = torch.randn(2, 10, generator=torch.Generator().manual_seed(1))


def test_masks_are_made_of_whole_walks(model):
    for sparsity in (0.9, 0.95, 0.97):
        found = pathex.prune(model, "phew", sparsity=sparsity, data=X)
        assert found.mask.kept == round((1 - sparsity) * found.mask.total)
        # The cut falls into one batch of walks, a tenth of all.
        assert found.report.disconnected is not None and found.report.disconnected <= 0.02 * found.mask.kept
        chance = pathex.prune(model, "random", sparsity=sparsity, data=X, allocation=found.mask)
        assert chance.report.disconnected is not None
        assert chance.report.disconnected > 3 * found.report.disconnected + 3


def test_the_first_walks_come_first(model):
    scores = score(model, X, walks=15)
    ranks = {name: entry.floor() for name, entry in scores.items()}
    assert max(float(rank.max()) for rank in ranks.values()) == 15
    for rank in range(1, 16):  # one walk each: a batch adds at most one weight to a layer
        assert all(int((entry == rank).sum()) <= 1 for entry in ranks.values())
    first = {name: rank == 15 for name, rank in ranks.items()}
    assert all(int(entry.sum()) == 1 for entry in first.values())
    assert connectivity(model, first, X).disconnected == 0
    union = {name: rank >= 1 for name, rank in ranks.items()}
    assert connectivity(model, union, X).disconnected == 0
    # What no walk used is ranked by magnitude, below all others.
    for name, entry in scores.items():
        rest = entry[ranks[name] == 0]
        weight = model.get_parameter(name).detach().abs()[ranks[name] == 0]
        assert torch.equal(rest.argsort(), weight.double().argsort()) and float(rest.max()) < 1e-6


def test_heavier_weights_are_used_more(model):
    kept = pathex.prune(model, "phew", sparsity=0.9, data=X).mask
    chance = pathex.prune(model, "random", sparsity=0.9, data=X, allocation=kept).mask
    for name in kept:
        weight = model.get_parameter(name).detach().abs()
        assert weight[kept[name]].mean() > 1.1 * weight[chance[name]].mean()


def test_seeds_rounds_and_redrawn_weights(model):
    first, again = (score(model, X, seed=3, walks=50) for _ in range(2))
    assert all(torch.equal(entry, first[name]) for name, entry in again.items())
    for other in ({"seed": 4}, {"seed": 3, "round": 2}, {"seed": 3, "redraw": True}):
        found = score(model, X, walks=50, **other)
        assert any(not torch.equal(entry, first[name]) for name, entry in found.items())


@pytest.mark.parametrize("case", ["dilated", "residual", "max-pool", "average-branch", "depthwise", "transposed"])
def test_masked_networks(case):
    model, x = build(case, seed=9)
    keep = random_mask(model, 9, density=0.6)
    on_paths = connectivity(model, keep, x).effective
    scores = score(model, x, mask=keep, walks=200)
    assert any((entry >= 1).any() for entry in scores.values())
    for name, entry in scores.items():
        assert not (entry[~on_paths[name]] >= 1).any() and not entry[~keep[name]].any()


@pytest.mark.filterwarnings("ignore:read as one")
def test_branches_that_start_at_zero_are_walked():
    model, x = build("residual", seed=1)
    body = model.get_submodule("3.branches.0.4")
    assert isinstance(body, nn.BatchNorm2d)
    nn.init.zeros_(body.weight)
    scores = score(model, x, walks=200)
    assert all((entry >= 1).any() for entry in scores.values())
