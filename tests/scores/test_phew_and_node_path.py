"""Node-path: path counts against enumeration, the best weights of units; PHEW: walks in order, whole."""

import math
from functools import partial
from itertools import pairwise
from statistics import fmean

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import CASES, build, perceptron, random_mask
from brute_force.paths import paths_through, units_of
from pathex.errors import UnsupportedOperation
from pathex.graph import trace
from pathex.masks import Mask, all_kept, prunable_weights
from pathex.paths import connectivity, count_paths, lowered
from pathex.paths.counts import _counted
from pathex.scores import NodePath, Phew, Problem, read_batches


def score(model, x, mask=None, method=NodePath, **options):
    about = {name: options.pop(name) for name in ("seed", "round") if name in options}
    return method(**options)(Problem(model, prunable_weights(model), read_batches(x, model), mask, **about))


phew = partial(score, method=Phew)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "masked"])
def test_paths_by_enumeration(case, pruned):
    model, x = build(case, seed=31)
    mask = random_mask(model, 31, density=0.7) if pruned else all_kept(prunable_weights(model))
    expected, total = paths_through(model, x, mask)
    found = count_paths(model, x, mask)
    assert found.total == pytest.approx(total, rel=1e-10) and total > 0
    shares = score(model, x, mask if pruned else None, alpha=0.0, beta=0.0)
    for name, through in expected.items():
        torch.testing.assert_close(found.through[name], through, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(shares[name], through / through.sum(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("case", "name", "groups", "transposed"),
    [("mlp", "2.weight", 1, False), ("dilated", "0.weight", 2, False), ("transposed", "2.weight", 2, True),
     ("max-pool", "3.weight", 1, False), ("depthwise", "0.weight", 2, False)],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_best_weights_of_units_and_kernels(case, name, groups, transposed, seed):
    model, x = build(case, seed=seed)
    mask = random_mask(model, seed + 40, density=0.7)
    through = count_paths(model, x, mask).through[name].flatten()
    outputs, inputs, kernels = units_of(mask[name].shape, groups, transposed)
    units = len(outputs) + len(inputs)
    alive = {side: [u for u in group.values() if through[u].max() > 0] for side, group in
             (("out", outputs), ("in", inputs), ("kernel", kernels))}  # fmt: skip
    bonus = score(model, x, mask, alpha=1.0, beta=0.0)[name].flatten() * units
    chosen = bonus > 0
    assert not (chosen & (through == 0)).any()
    assert all(chosen[unit].any() for side in ("out", "in") for unit in alive[side])
    # Each output unit has one best weight, and each input unit that has none of those one of its own.
    for unit in alive["out"]:
        assert any(chosen[j] and float(through[j]) == pytest.approx(float(through[unit].max())) for j in unit)
    assert round(float(bonus.sum())) <= len(alive["out"]) + len(alive["in"])
    assert round(float(bonus.sum())) >= max(len(alive["out"]), len(alive["in"]))
    spread = (score(model, x, mask, alpha=1.0, beta=1.0)[name].flatten() * units - bonus) / units
    for unit in alive["kernel"]:
        best = [j for j in unit if spread[j] > 1e-12]
        assert len(best) == 1 and float(through[best[0]]) == pytest.approx(float(through[unit].max()))
        assert float(spread[best[0]]) == pytest.approx(1 / int((through > 0).sum()))


def test_the_parts_add_up():
    model, x = build("dilated", seed=2)
    nodes, paths, kernels = (score(model, x, alpha=a, beta=b) for a, b in ((1.0, 0.0), (0.0, 0.0), (0.0, 1.0)))
    expected = {n: 0.3 * nodes[n] + 0.7 * paths[n] + 0.2 * (kernels[n] - paths[n]) for n in paths}
    torch.testing.assert_close(score(model, x, alpha=0.3, beta=0.2), expected)


def test_more_paths_than_float64_holds():
    deep = nn.Sequential(*(nn.Linear(100, 100) for _ in range(165)))
    mask = {name: torch.rand(entry.shape) < 0.8 for name, entry in all_kept(prunable_weights(deep)).items()}
    counts = count_paths(deep, torch.randn(1, 100), mask)
    assert 80**165 > 2**1024 and 0 < counts.total < 1e6
    for through in counts.through.values():
        assert float(through.sum()) == pytest.approx(counts.total)
    # On a chain dividing each layer changes no share.
    model, x = build("max-pool", seed=3)
    graph = lowered(trace(model, x))
    plain, scaled = (
        _counted(graph, model, x, all_kept(prunable_weights(model)), "refuse", False, scaled=flag)
        for flag in (False, True)
    )
    for name, through in plain.through.items():
        torch.testing.assert_close(scaled.through[name] / scaled.total, through / plain.total)


def nodes_and_paths(model, x, mask):
    """Input and output units of all layers with a weight on a path, and the logarithm of the number of paths.

    By the gradient of the network of ones, where ReLU does nothing.
    """
    weights = {name: kept.double().requires_grad_() for name, kept in mask.items()}
    biases = {name: torch.zeros_like(p).double() for name, p in model.named_parameters() if name not in mask}
    total = torch.func.functional_call(model, {**weights, **biases}, torch.ones_like(x[:1], dtype=torch.float64)).sum()
    units = 0
    for weight, grad in zip(weights.values(), torch.autograd.grad(total, list(weights.values())), strict=True):
        used = ((weight > 0) & (grad > 0)).reshape(*weight.shape[:2], -1).any(2)
        units += int(used.any(0).sum()) + int(used.any(1).sum())
    return units, math.log(float(total.detach())) if float(total.detach()) > 0 else -math.inf


def convolutional():
    steps = zip(pairwise((3, 16, 32, 32, 32)), (1, 2, 1, 1), strict=True)
    layers = [layer for (a, b), step in steps for layer in (nn.Conv2d(a, b, 3, step, 1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


@pytest.mark.parametrize(
    ("make", "shape"), [(partial(perceptron, 20, 50, 50, 50, 10), (20,)), (convolutional, (3, 10, 10))]
)
@pytest.mark.parametrize("allocation", ["global", pytest.param("erk", marks=pytest.mark.slow)])
@pytest.mark.parametrize("sparsity", [0.9, 0.97])
@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
def test_it_keeps_more_units_and_paths(make, shape, allocation, sparsity):
    torch.manual_seed(0)
    model, x = make(), torch.randn(2, *shape)

    def mean(method, rounds):
        """Over six orders of ties: where all scores are alike, as here at first, they decide much."""
        options = {"sparsity": sparsity, "data": x, "allocation": allocation, "rounds": rounds}
        masks = [pathex.prune(model, method, seed=seed, **options).mask for seed in range(6)]
        units, paths = zip(*(nodes_and_paths(model, x, mask) for mask in masks), strict=True)
        return fmean(units), fmean(paths)

    kept = {method: mean(method, rounds) for method, rounds in (("node-path", 20), ("synflow", 20), ("random", 1))}
    dense = nodes_and_paths(model, x, Mask(all_kept(prunable_weights(model))))
    balance = {method: units / dense[0] + max(paths, 0.0) / dense[1] for method, (units, paths) in kept.items()}
    assert kept["node-path"][0] > kept["synflow"][0]
    assert kept["node-path"][1] > kept["random"][1]
    assert balance["node-path"] > max(balance["synflow"], balance["random"])
    if sparsity == 0.9:  # room for every unit
        assert kept["node-path"][0] == dense[0]


def test_neither_weights_nor_scales_play_a_part_and_seeds_break_ties():
    model, x = build("residual", seed=1)
    other, _ = build("residual", seed=2)
    first = score(model, x)
    assert any(not torch.equal(entry, first[name]) for name, entry in score(model, x, seed=1).items())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.zero_()
    for found in (score(other, x), score(model, x)):
        assert all(torch.equal(entry, first[name]) for name, entry in found.items())


def test_weights_of_normalisation_are_refused():
    model, x = build("residual", seed=1)
    data = (x, torch.zeros(len(x), dtype=torch.long))
    with pytest.raises(UnsupportedOperation, match=r"uses '1\.weight' as no convolution or linear layer does"):
        pathex.score(model, "node-path", data, prunable=[nn.BatchNorm2d])


@pytest.fixture
def wide():
    torch.manual_seed(0)
    return perceptron(10, 40, 40, 5)


X = torch.randn(2, 10, generator=torch.Generator().manual_seed(1))


def test_masks_are_made_of_whole_walks(wide):
    for sparsity in (0.9, 0.95, 0.97):
        found = pathex.prune(wide, "phew", sparsity=sparsity, data=X)
        assert found.mask.kept == round((1 - sparsity) * found.mask.total)
        # The cut falls into one batch of walks, a tenth of all.
        assert found.report.disconnected is not None and found.report.disconnected <= 0.02 * found.mask.kept
        chance = pathex.prune(wide, "random", sparsity=sparsity, data=X, allocation=found.mask)
        assert chance.report.disconnected is not None
        assert chance.report.disconnected > 3 * found.report.disconnected + 3


def test_the_first_walks_come_first(wide):
    scores = phew(wide, X, walks=15)
    ranks = {name: entry.floor() for name, entry in scores.items()}
    assert max(float(rank.max()) for rank in ranks.values()) == 15
    for rank in range(1, 16):  # one walk each: a batch adds at most one weight to a layer
        assert all(int((entry == rank).sum()) <= 1 for entry in ranks.values())
    first = {name: rank == 15 for name, rank in ranks.items()}
    assert all(int(entry.sum()) == 1 for entry in first.values())
    assert connectivity(wide, first, X).disconnected == 0
    union = {name: rank >= 1 for name, rank in ranks.items()}
    assert connectivity(wide, union, X).disconnected == 0
    # What no walk used is ranked by magnitude, below all others.
    for name, entry in scores.items():
        rest = entry[ranks[name] == 0]
        weight = wide.get_parameter(name).detach().abs()[ranks[name] == 0]
        assert torch.equal(rest.argsort(), weight.double().argsort()) and float(rest.max()) < 1e-6


def test_seeds_rounds_and_redrawn_weights(wide):
    first, again = (phew(wide, X, seed=3, walks=50) for _ in range(2))
    assert all(torch.equal(entry, first[name]) for name, entry in again.items())
    for other in ({"seed": 4}, {"seed": 3, "round": 2}, {"seed": 3, "redraw": True}):
        found = phew(wide, X, walks=50, **other)
        assert any(not torch.equal(entry.floor(), first[name].floor()) for name, entry in found.items())


@pytest.mark.parametrize("case", ["dilated", "residual", "max-pool", "average-branch", "depthwise", "transposed"])
def test_masked_networks(case):
    model, x = build(case, seed=9)
    keep = random_mask(model, 9, density=0.6)
    on_paths = connectivity(model, keep, x).effective
    scores = phew(model, x, mask=keep, walks=200)
    assert any((entry >= 1).any() for entry in scores.values())
    for name, entry in scores.items():
        assert not (entry[~on_paths[name]] >= 1).any() and not entry[~keep[name]].any()


@pytest.mark.filterwarnings("ignore:read as one")
def test_branches_that_start_at_zero_are_walked():
    model, x = build("residual", seed=1)
    body = model.get_submodule("3.branches.0.4")
    assert isinstance(body, nn.BatchNorm2d)
    nn.init.zeros_(body.weight)
    scores = phew(model, x, walks=200)
    assert all((entry >= 1).any() for entry in scores.values())
