import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pathex
from brute_force.cases import Wired, perceptron
from pathex.analysis import warn_of_collapse
from pathex.errors import InvalidInput, LayerCollapse
from pathex.models import CifarResNet
from pathex.paths import connectivity

EXPLICIT = {"fc.weight": 1.0, "conv.weight": 0.5, "blocks.1.shortcut.0.weight": 0.0}
SETTINGS = [
    {"schedule": "linear"},
    {"min_per_layer": 3},
    {"min_per_output": 3},
    {"budget": "effective"},
    *({"allocation": allocation} for allocation in ("global", "layer", "uniform", "erk", EXPLICIT)),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("rounds", "schedule", "start"), [(7, "exponential", 0.9), (16, "adaptive:0.03", 0.8)])
@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_every_round_keeps_its_count_of_what_the_last_one_kept(model, images, settings, rounds, schedule, start):
    begin = pathex.prune(model, "random", sparsity=1 - start, data=images).mask
    if settings.get("allocation") == EXPLICIT:
        begin["fc.weight"][:] = True
    masks, begun = [], begin.density
    result = pathex.prune(
        model, "px", sparsity=0.8, data=images, rounds=rounds, mask=begin,
        on_round=lambda row, mask: masks.append(mask), **{"schedule": schedule, **settings},
    )  # fmt: skip
    linear = settings.get("schedule") == "linear"
    for number, (row, mask) in enumerate(zip(result.history, masks, strict=True), 1):
        passed = row["reached"] / rounds
        density = begun + (0.2 - begun) * passed if linear else begun * (0.2 / begun) ** passed
        assert row["density"] == pytest.approx(density) and row["seconds"] > 0
        assert (row["round"], row["rounds"]) == (number, rounds)
        assert row["kept"] == mask.kept == round(row["density"] * mask.total)
    assert row["reached"] == rounds and (len(masks) < rounds) == (schedule != "exponential" and not linear)
    assert result.mask == masks[-1] and result.mask.kept == round(0.2 * result.mask.total)
    assert all((smaller - larger).kept == 0 for larger, smaller in itertools.pairwise([begin, *masks]))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.123456, 0.99, np.float32(0.25)])
@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
def test_exact_sparsity(model, images, sparsity):
    mask = pathex.prune(model, "random", sparsity=sparsity, data=images).mask
    assert mask.kept == round((1 - float(sparsity)) * mask.total)


@pytest.mark.parametrize(("rounds", "said"), [(1, "1 round"), (2, "2 rounds"), (30, "30 rounds")])
def test_a_result_shows_itself_in_one_line(rounds, said):
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    result = pathex.prune(network, "px", sparsity=0.5, data=torch.randn(8, 3), rounds=rounds)
    assert repr(result) == f"PruneResult({result.mask!r}, {said}, 0 dead layers)" and "\n" not in repr(result)


@pytest.mark.parametrize("method", ["px", "random", lambda m, b, k: {n: torch.zeros_like(p) for n, p in weights(m)}])
@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse", "ignore:all scores are zero")
def test_seeds(model, images, method):
    first, again, other = (pathex.prune(model, method, sparsity=0.9, data=images, rounds=2, seed=s).mask
                           for s in (1, 1, 2))  # fmt: skip
    assert first == again
    assert (first == other) == (method == "px")


def weights(model):
    return ((name, p) for name, p in model.named_parameters() if p.dim() > 1)


@pytest.mark.parametrize("allocation", ["global", "uniform", {"0.weight": 0.0}])
def test_every_round_keeps_the_floor_of_each_layer(allocation):
    model, kept = perceptron(5, 20, 3), []
    with torch.no_grad():
        model[2].weight *= 1e-3
    pathex.prune(
        model, "magnitude", sparsity=0.9, data=torch.randn(4, 5), rounds=4, min_per_layer=3, allocation=allocation,
        on_round=lambda row, mask: kept.append([count.kept for count in mask.counts().values()]),
    )  # fmt: skip
    assert all(min(row) >= 3 for row in kept) and sum(kept[-1]) == 16


@pytest.mark.parametrize("allocation", ["global", "layer", "uniform", "erk"])
def test_a_start_mask_of_the_wanted_sparsity_stays(model, images, allocation):
    start = pathex.prune(model, "random", sparsity=0.5, data=images).mask
    same = pathex.prune(model, "magnitude", sparsity=0.5, data=images, mask=start, allocation=allocation).mask
    assert same == start
    with pytest.raises(InvalidInput, match="start mask keeps"):
        pathex.prune(model, sparsity=0.4, data=images, mask=start)


def test_published_rounds_are_the_default():
    data, model = torch.randn(2, 3), perceptron(3, 6, 2)
    assert len(pathex.prune(model, "px", sparsity=0.5, data=data).history) == 100
    assert len(pathex.prune(model, "magnitude", sparsity=0.5, data=data).history) == 1
    hundred = ("px", "px-literal", "px-cvpr24", "px-cvpr24-v2", "synflow", "synflow-l2", "ntk-sap")
    rounds = dict.fromkeys(pathex.methods(), 1) | dict.fromkeys(hundred, 100)
    rounds |= {"iterative-snip": 60, "force": 60, "iterative-grasp": 60, "node-path": 20}
    assert {name: pathex.methods(name).rounds for name in pathex.methods()} == rounds


def test_a_callable_gets_the_masked_model_the_batches_and_the_mask():
    model, seen = perceptron(3, 6, 2), []
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])

    def gradients(net, batches, mask, power=1):
        seen.append((mask, {name: p.detach().clone() for name, p in weights(net)}, batches))
        F.cross_entropy(net(batches[0][0]), batches[0][1]).backward()
        return {name: p.grad.abs() ** power for name, p in weights(net)}

    result = pathex.prune(model, gradients, sparsity=0.5, data=[(x, y)], rounds=2, power=2)
    pathex.score(model, gradients, [(x, y)])
    (first, _, batches), (second, masked, _), (alone, _, _) = seen
    assert first.density == alone.density == 1 and second.kept == result.history[0]["kept"]
    assert torch.equal(batches[0][0], x) and torch.equal(batches[0][1], y)
    assert all(torch.equal(entry, model.get_parameter(n).detach() * second[n]) for n, entry in masked.items())
    assert all(p.grad is None for p in model.parameters())
    assert result.mask.metadata["method"] == "gradients" and result.mask.metadata["options"] == {"power": 2}


def test_own_modules_can_be_pruned_and_compiled_ones_have_their_names():
    scale = Wired(lambda net, x: x * net.weight, weight=nn.Parameter(torch.tensor([0.5, 2.0, 0.1, 1.0])))
    model, x = nn.Sequential(nn.Linear(3, 4), scale, nn.Linear(4, 2)), torch.randn(2, 3)
    mask = pathex.prune(model, "magnitude", sparsity=0.5, data=x, prunable=[Wired], ignore=["0"]).mask
    assert mask.counts().keys() == {"1.weight", "2.weight"} and mask["1.weight"].tolist()[1] and mask.kept == 6
    assert pathex.score(model, "px", x, prunable=[Wired])["1.weight"].all()
    mask = pathex.prune(torch.compile(model, backend="eager"), "magnitude", sparsity=0.5, data=x).mask
    assert mask.keys() == {"0.weight", "2.weight"}


def test_what_lies_on_no_path_is_counted_and_an_effective_budget_swaps_it():
    # Of two hidden units the first has no way out, the second no way in but one.
    scores = {"0.weight": torch.tensor([[4.0, 4.0], [5.0, 0.0]]), "2.weight": torch.tensor([[0.0, 6.0], [0.0, 0.0]])}
    nominal, effective = (
        pathex.prune(perceptron(2, 2, 2), lambda *_: scores, sparsity=0.5, data=torch.randn(2, 2), budget=budget)
        for budget in ("nominal", "effective")
    )
    report = nominal.report
    assert report.disconnected == 2 and report.dead_layers == [] and report.asdict()["unused"] == []
    assert report.dead_channels == {"0.weight": [0], "2.weight": [1]}
    assert effective.mask.kept == 4 and effective.report.disconnected == 0
    assert effective.mask["2.weight"][0, 1] and effective.mask["0.weight"][1, 0]


def test_effective_budget_on_a_residual_network(model, images):
    masks, shared = [], {"sparsity": 0.9, "data": images, "rounds": 3}
    pathex.prune(model, "magnitude", budget="effective", on_round=lambda row, mask: masks.append(mask), **shared)
    assert [connectivity(model, mask, images).disconnected for mask in masks] == [0, 0, 0]
    assert masks[-1].kept == round(0.1 * masks[-1].total)
    assert pathex.prune(model, "magnitude", **shared).report.disconnected > 0


@pytest.mark.filterwarnings("ignore:all scores are zero")
def test_a_collapsed_layer_warns_or_raises():
    model = perceptron(3, 6, 2)
    scores = {"0.weight": torch.ones(6, 3), "2.weight": torch.zeros(2, 6)}
    arguments = {"sparsity": 0.5, "data": torch.randn(2, 3)}
    with pytest.raises(LayerCollapse, match=r"^1 layer lost every weight on every path: fc$"):
        warn_of_collapse(SimpleNamespace(dead_layers=["fc"]), strict=True)
    with pytest.warns(LayerCollapse, match=r"^2 layers lost every weight on every path: 0\.weight, 2\.weight"):
        result = pathex.prune(model, lambda m, b, k: scores, **arguments)
    assert result.history[-1]["emptied"] == ["2.weight"] and result.report.dead_layers == ["0.weight", "2.weight"]
    with pytest.raises(LayerCollapse, match=r"2\.weight"):
        pathex.prune(model, lambda m, b, k: scores, strict=True, **arguments)


@pytest.mark.parametrize(("sparsity", "rounds"), [(0.98, 40), (0.97, 1)])
@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
def test_px_empties_no_layer_on_a_path(images, sparsity, rounds):
    torch.manual_seed(0)
    result = pathex.prune(CifarResNet(20, width=4), "px", sparsity=sparsity, data=images, rounds=rounds)
    assert all(not row["emptied"] for row in result.history)
    if rounds == 40:
        assert result.report.dead_layers == [] and result.report.disconnected == 0


def test_data_are_read_once_and_a_loader_does_not_move_the_generator(model, images):
    reads = 0

    def once():
        nonlocal reads
        reads += 1
        yield from images.split(3)

    loader = DataLoader(TensorDataset(images, torch.arange(8)), batch_size=3, shuffle=True)
    before = torch.get_rng_state()
    expected, read_once, shuffled = (
        pathex.prune(model, "px", sparsity=0.7, data=data, rounds=3).mask for data in (images, once(), loader)
    )
    assert read_once == expected and reads == 1
    assert torch.equal(torch.get_rng_state(), before) and shuffled.jaccard(expected) > 0.98
