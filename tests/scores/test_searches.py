"""Searches for a mask: their slow twins, what they refuse, and what they leave behind."""

import copy
from functools import partial
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathex
from brute_force import searches
from brute_force.cases import Wired, assert_close, perceptron, random_mask
from brute_force.gradients import labelled
from pathex.errors import PathexError, PathexWarning
from pathex.masks import Mask
from pathex.scores import generator, widetopo
from refusals import refused
from scores.searching import SHORT, every_search, searched, small
from snapshots import unchanged

pytestmark = [
    # Networks as small as these lose layers.
    pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse"),
]


def twin_of(method, model, problem, options):
    """Its values, and how often the twin took a turn that the weights alone do not lead to."""
    start, source = problem.allowed, partial(generator, problem.seed)
    if method == "dpai":
        return searches.dpai(model, problem.images, start, problem.target, source, **options)
    parts = (model, problem.images, problem.labels, start, problem.target, source)
    if method == "cts":
        return searches.cts(*parts, **options)
    return searches.edge_popup(*parts, **options), 1


@pytest.mark.parametrize(
    ("allocation", "pruned"), [("global", False), ("global", True), ("layer", True), ("erk", False), ("erk", True)]
)
@pytest.mark.parametrize("case", ["mlp", "depthwise", "residual"])
@pytest.mark.parametrize("name", [name for name in SHORT if name != "widetopo"])
def test_values_equal_the_twin(name, case, allocation, pruned):
    method, options = SHORT[name]
    model, data = labelled(case, 51, (5, 4))
    start = Mask(random_mask(model, 51, 0.85)) if pruned else None
    problem, values, mask = searched(model, method, data, allocation=allocation, mask=start, seed=3, **options)
    expected, _ = twin_of(method, model, problem, options)
    allowed = problem.allowed
    # Adam's small epsilon makes steps of what is rounding where BatchNorm leaves a lone weight no derivative.
    near = 1e-8 if method == "cts" else 1e-10
    both = [{name: value * allowed[name] for name, value in each.items()} for each in (values, expected)]
    assert_close(*both, near)
    assert searches.is_best(mask, expected, allowed, problem.target)
    assert isinstance(problem.target, int) == (allocation == "global")


@pytest.mark.parametrize("name", ["cts", "cts-kl", "edge-popup"])
def test_with_the_statistics_that_are_stored(name):
    method, options = SHORT[name]
    model, data = labelled("average-branch", 52, (6,))
    problem, values, _ = searched(model, method, data, sparsity=0.8, calibration="running", **options)
    expected, turned = twin_of(method, copy.deepcopy(model).eval(), problem, options)
    assert_close(values, expected)
    assert turned > 0  # so that the multiplier of GradBalance counts


@pytest.mark.parametrize("case", ["dilated", "max-pool", "average-branch", "transposed", "shared"])
def test_dpai_opens_units_and_kernels_that_are_on_no_path(case):
    method, options = SHORT["dpai"]
    model, data = labelled(case, 53, (2,))
    problem, values, mask = searched(model, method, data, sparsity=0.75, **options)
    expected, idle = twin_of(method, model, problem, options)
    assert_close(values, expected)
    assert searches.is_best(mask, expected, problem.allowed, problem.target)
    assert idle > 0


@pytest.mark.parametrize(
    ("case", "allocation", "pruned", "options"),
    [
        ("mlp", "global", False, {}),
        ("mlp", "erk", True, {"epsilon": 0.0005}),
        ("depthwise", "layer", True, {"iterations": 1}),
        ("residual", "global", True, {}),
        ("average-branch", "erk", False, {"calibration": "running", "restorations": 1}),
        ("shared", "global", False, {"restorations": 0, "iterations": 4}),
    ],
)
def test_every_choice_of_widetopo_equals_the_twin(case, allocation, pruned, options, monkeypatch):
    options = SHORT["widetopo"][1] | options
    model, data = labelled(case, 54, (5, 4))
    start = Mask(random_mask(model, 54, 0.85)) if pruned else None
    chosen, largest = [], widetopo.largest

    def spy(values, allowed, target):
        chosen.append((values, allowed, target, largest(values, allowed, target)))
        return chosen[-1][-1]

    monkeypatch.setattr(widetopo, "largest", spy)
    problem, values, mask = searched(model, "widetopo", data, allocation=allocation, mask=start, seed=4, **options)
    parts = (model, problem.batches, problem.allowed, problem.target, partial(generator, problem.seed))
    twin = searches.widetopo(*parts, **options, chosen=[each[-1] for each in chosen])
    for (ranks, allowed, count, kept), (expected, among, number) in zip(chosen, twin, strict=True):
        assert count == number and all(torch.equal(allowed[name], entry) for name, entry in among.items())
        assert_close({n: r * allowed[n] for n, r in ranks.items()}, {n: r * among[n] for n, r in expected.items()})
        assert searches.is_best(kept, expected, among, number)
    assert all(torch.equal(values[name] > 0, kept[name]) and torch.equal(mask[name], kept[name]) for name in kept)


@every_search
def test_what_a_search_does_not_do(name):
    model, method, data, options = small(name)
    how = {"model": model, "method": method, "data": data, **options}
    with unchanged(model):
        with refused(f"{method} searches for a mask of a given sparsity: use pathex.prune, not pathex.score"):
            pathex.score(**how)
        with refused(f"{method} searches for the mask in one round, not 2; leave rounds= out"):
            pathex.prune(**how, sparsity=0.4, rounds=2)
        if method in {"cts", "edge-popup"}:
            with refused(f"method '{method}' needs labels"):
                pathex.prune(**how | {"data": [x for x, _ in data]}, sparsity=0.4)


@pytest.mark.parametrize("name", ["cts", "edge-popup", "dpai", "widetopo"])
def test_a_search_is_for_the_best_of_all_weights_or_of_each_layer(name):
    model, method, data, options = small(name)
    for other in ({"count": "multiply_adds"}, {"structure": "channels"}, {"budget": "effective"}, {"min_per_layer": 1}):
        with refused(f"method '{method}', which searches for so many .* needs {next(iter(other))}=.*, not "):
            pathex.prune(model, method, sparsity=0.4, data=data, **other, **options)


def test_dpai_trains_all_uses_of_a_weight_and_passes_over_those_without():
    parts = {"weight": nn.Parameter(torch.randn(8, 3)), "head": nn.Linear(8, 2), "aux": nn.Linear(8, 2)}

    def halves(net, x):
        return net.head(torch.cat([F.linear(x, net.weight[:4]), F.linear(x, net.weight[4:])], 1))

    how = {"sparsity": 0.5, "data": torch.randn(2, 3), "steps": 1, "lr": 0.1, "prunable": ["weight", "aux.weight"]}
    problem, values, _ = searched(Wired(halves, **parts).double(), "dpai", how.pop("data"), **how)
    first = [generator(0, 11, number) for number in range(len(problem.prunable))]
    for source, (name, value) in zip(first, values.items(), strict=True):
        start = torch.randn(value.shape, dtype=torch.float64, generator=source).abs()
        moved = (value != start).any(1)
        assert all(part.any() == (name != "aux.weight") for part in moved.split(max(1, len(moved) // 2))), name


def test_widetopo_scores_in_float64_what_leaves_float32():
    model, _, data, _ = small()
    with torch.no_grad():
        for weight in (model[0].weight, model[3].weight, model[5].weight):
            weight.mul_(1e9)
    model = nn.Sequential(model[0], *model[2:])  # without BatchNorm
    how = {"sparsity": 0.5, "iterations": 2, "restorations": 0}
    with pytest.warns(PathexWarning, match="leave float32 and are computed in float64"):
        found = pathex.prune(model, "widetopo", data=data, **how).mask
    wide = pathex.prune(copy.deepcopy(model).double(), "widetopo", data=[(x.double(), y) for x, y in data], **how).mask
    assert found.jaccard(wide) > 0.9


def test_widetopo_prunes_what_has_one_dimension():
    model, _, data, _ = small()
    how = {"sparsity": 0.5, "iterations": 2, "restorations": 1, "prunable": ["1.weight"]}
    assert "1.weight" in pathex.prune(model, "widetopo", data=data, **how).mask


class Broken(BaseException):
    pass


@every_search
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Broken])
def test_the_network_is_left_as_it_was_whatever_stops_a_search(name, error):
    model, method, data, options = small(name)

    def fail(*step):
        raise error

    with unchanged(model), pytest.raises(error):
        pathex.prune(model, method, sparsity=0.4, data=data, on_step=fail, **options)


@pytest.mark.parametrize("name", ["cts", "edge-popup", "widetopo"])
def test_it_is_left_so_by_an_error_of_its_own_too(name):
    model, method, data, options = small(name)
    calls = []

    def fail(module, given):
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("in the middle")

    model[3].register_forward_pre_hook(fail)
    with unchanged(model), pytest.raises(RuntimeError, match="in the middle"):
        pathex.prune(model, method, sparsity=0.4, data=data, **options)
    assert len(calls) == 5


def test_a_search_that_diverges_or_finds_no_path_says_so():
    model, method, data, options = small("edge-popup")
    with unchanged(model), refused("edge-popup: the search diverges; allowed: a smaller lr", PathexError):
        pathex.prune(model, method, sparsity=0.4, data=data, **options | {"lr": 1e30})
    with unchanged(model), refused("dpai: the mask of the search has no path left", PathexError):
        pathex.prune(model, "dpai", sparsity=0.97, data=data)


def test_the_divergence_of_one_output_is_refused():
    one = nn.Sequential(nn.Linear(3, 1))
    with refused(r"loss='kl' needs outputs \(N, classes, ...\) with two classes or more, not \(4, 1\)"):
        pathex.prune(one, "cts", sparsity=0.4, data=(torch.randn(4, 3), torch.zeros(4)), loss="kl")


@pytest.mark.parametrize(("loss", "most"), [("cross-entropy", 0.4), ("kl", 0.5)])
def test_cts_lowers_what_it_descends(loss, most):
    """On images whose classes a linear map gives, against ten random masks of the same size."""
    source = torch.Generator().manual_seed(2)
    model = perceptron(8, 40, 40, 3)
    with torch.no_grad():
        for entry in model.parameters():
            entry.copy_(torch.randn(entry.shape, generator=source) * (2 / entry.shape[-1]) ** 0.5 * (entry.dim() > 1))
    x = torch.randn(256, 8, generator=source)
    y = (x @ torch.randn(8, 3, generator=source)).argmax(1)
    dense = model(x).detach().log_softmax(1)

    def height(method, **options):
        mask = pathex.prune(model, method, sparsity=0.5, data=(x, y), **options).mask
        with torch.no_grad():
            weights = {name: model.get_parameter(name) * kept for name, kept in mask.items()}
            logs = torch.func.functional_call(model, weights, (x,)).log_softmax(1)
        return float(F.nll_loss(logs, y) if loss == "cross-entropy" else (logs.exp() * (logs - dense)).sum(1).mean())

    found = height("cts", loss=loss, epochs=20, batch_size=32)
    others = [height("random", seed=seed) for seed in range(10)]
    assert found < most * fmean(others) and found < 0.6 * min(others)
