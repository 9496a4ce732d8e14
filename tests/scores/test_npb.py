"""Node-path balance: path counts against enumeration, the best weights of units, and what pruning by it keeps."""

import math
from itertools import pairwise
from statistics import fmean

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import CASES, build, perceptron, random_mask
from brute_force.node_paths import paths_through, units_of
from pathex.errors import UnsupportedOperation
from pathex.graph import trace
from pathex.masks import Mask, all_kept, prunable_weights
from pathex.paths import count_paths, lowered
from pathex.paths.counts import _counted
from pathex.scores import Npb, Problem, read_batches


def score(model, x, mask=None, **options):
    return Npb(**options)(Problem(model, prunable_weights(model), read_batches(x), mask))


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
    for side in ("out", "in"):
        assert all(chosen[unit].any() for unit in alive[side])
    # Each output unit has one best weight, and each input unit that has none of those one of its own.
    best_of_output = []
    for unit in alive["out"]:
        best = [j for j in unit if chosen[j] and float(through[j]) == pytest.approx(float(through[unit].max()))]
        assert best
        best_of_output += best
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
    for name, value in score(model, x, alpha=0.3, beta=0.2).items():
        want = 0.3 * nodes[name] + 0.7 * paths[name] + 0.2 * (kernels[name] - paths[name])
        torch.testing.assert_close(value, want)


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
        _counted(graph, model, x, all_kept(prunable_weights(model)), "refuse", flag) for flag in (False, True)
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


def fully_connected():
    return perceptron(20, 50, 50, 50, 10), torch.randn(2, 20)


def convolutional():
    steps = zip(pairwise((3, 16, 32, 32, 32)), (1, 2, 1, 1), strict=True)
    layers = [layer for (a, b), step in steps for layer in (nn.Conv2d(a, b, 3, step, 1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)), torch.randn(2, 3, 10, 10)


@pytest.mark.parametrize("make", [fully_connected, convolutional])
@pytest.mark.parametrize("allocation", ["global", pytest.param("erk", marks=pytest.mark.slow)])
@pytest.mark.parametrize("sparsity", [0.9, 0.97])
@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
def test_it_keeps_more_units_and_paths(make, allocation, sparsity):
    torch.manual_seed(0)
    model, x = make()

    def mean(method, rounds):
        """Over six orders of ties: where all scores are alike, as here at first, they decide much."""
        options = {"sparsity": sparsity, "data": x, "allocation": allocation, "rounds": rounds}
        masks = [pathex.prune(model, method, seed=seed, **options).mask for seed in range(6)]
        units, paths = zip(*(nodes_and_paths(model, x, mask) for mask in masks), strict=True)
        return fmean(units), fmean(paths)

    kept = {method: mean(method, rounds) for method, rounds in (("npb", 20), ("synflow", 20), ("random", 1))}
    dense = nodes_and_paths(model, x, Mask(all_kept(prunable_weights(model))))
    balance = {method: units / dense[0] + max(paths, 0.0) / dense[1] for method, (units, paths) in kept.items()}
    assert kept["npb"][0] > kept["synflow"][0]
    assert kept["npb"][1] > kept["random"][1]
    assert balance["npb"] > max(balance["synflow"], balance["random"])
    if sparsity == 0.9:  # room for every unit
        assert kept["npb"][0] == dense[0]


def test_alpha_buys_units_with_paths():
    torch.manual_seed(0)
    model, x = convolutional()
    rows = [
        nodes_and_paths(model, x, pathex.prune(model, "npb", sparsity=0.97, data=x, alpha=alpha, beta=1.0).mask)
        for alpha in (0.01, 0.9)
    ]
    assert rows[0][0] < 0.8 * rows[1][0] and rows[0][1] > rows[1][1]


def test_neither_weights_nor_scales_play_a_part_and_seeds_break_ties():
    model, x = build("residual", seed=1)
    other, _ = build("residual", seed=2)
    first = score(model, x)
    problem = Problem(model, prunable_weights(model), read_batches(x), seed=1)
    assert any(not torch.equal(entry, first[name]) for name, entry in Npb()(problem).items())
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
        pathex.score(model, "npb", data, prunable=[nn.BatchNorm2d])
