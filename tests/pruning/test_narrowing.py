"""Units that keep too few weights are given up, and what is left is scored again."""

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import Wired, perceptron
from pathex.graph import trace
from pathex.paths import without_narrow_units
from refusals import refused

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def widths(mask):
    """Kept weights of each output unit, by plain loops over the first dimension."""
    return {name: [int(unit.sum()) for unit in kept] for name, kept in mask.items()}


def small():
    torch.manual_seed(0)
    return pathex.models.CifarResNet(8, num_classes=4, width=6)


def without(mask, start, least, outputs):
    """The start mask less narrow units, written out."""
    left = {name: kept.clone() for name, kept in start.items()}
    for name, found in widths(mask).items():
        for unit, width in enumerate(found):
            if name not in outputs and width < min(least, max(found)):
                left[name][unit] = False
    return left


@pytest.mark.parametrize("method", ["px", "ntk-sap", "synflow", "snip", "magnitude"])
def test_it_is_three_prunes_each_from_what_the_one_before_left(method):
    model, how = small(), {"sparsity": 0.9, "rounds": 3, "data": (X, torch.arange(6) % 4), "seed": 5}
    result = pathex.prune(model, method, **how, narrow=3)
    for column in ("round", "reached"):
        assert [row[column] for row in result.history] == list(range(1, 10))
    assert {row["rounds"] for row in result.history} == {9}
    assert result.mask.kept == pathex.prune(model, method, **how).mask.kept
    if method != "ntk-sap":  # which draws by the number of the round
        start = pathex.prune(model, "random", sparsity=0, data=X).mask
        mask = pathex.prune(model, method, **how).mask
        for _ in range(2):
            again = pathex.Mask(without(mask, start, 3, {"fc.weight"}))
            mask = pathex.prune(model, method, **how, mask=again).mask
        assert all(torch.equal(mask[name], kept) for name, kept in result.mask.items())


def test_there_are_fewer_and_wider_units_and_the_network_is_alive():
    plain, narrow = (pathex.prune(small(), "px", sparsity=0.97, data=X, rounds=20, narrow=n) for n in (0, 3))
    live = [
        [w for n, found in widths(each.mask).items() if n != "fc.weight" for w in found if w]
        for each in (plain, narrow)
    ]
    assert len(live[1]) < 0.9 * len(live[0])
    assert sum(w < 3 for w in live[1]) < 0.5 * sum(w < 3 for w in live[0])
    assert narrow.report.dead_layers == [] and all(any(kept.any(1)) for kept in [narrow.mask["fc.weight"]])


def test_outputs_and_the_widest_of_a_layer_stay_whatever_is_asked_for():
    model = perceptron(4, 5, 5, 3)
    graph = trace(model, torch.randn(2, 4))
    names = [name for name, weight in model.named_parameters() if weight.dim() > 1]
    full = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names}
    mask = {name: kept.clone() for name, kept in full.items()}
    mask[names[0]][:, 1:] = False
    mask[names[0]][2, :3] = True
    mask[names[2]][:] = False
    left = without_narrow_units(graph, mask, full, 99)
    assert left[names[0]].any(1).tolist() == [False, False, True, False, False]
    assert left[names[1]].all() and left[names[2]].all()  # all equally wide; outputs
    assert without_narrow_units(graph, mask, full, 1)[names[0]].all()


def test_a_layer_that_the_output_reads_beside_others_stays():
    parts = {name: nn.Linear(4, 4) for name in "abc"}
    model = Wired(lambda net, x: (h := net.b(net.a(x))) + net.c(h), **parts)
    full = {f"{name}.weight": torch.ones(4, 4, dtype=torch.bool) for name in parts}
    mask = {name: kept.clone() for name, kept in full.items()}
    for kept in mask.values():
        kept[0, 1:] = False
    left = without_narrow_units(trace(model, torch.randn(2, 4)), mask, full, 2)
    assert [bool(kept.all()) for kept in left.values()] == [False, True, True]


def test_grouped_and_transposed_convolutions_have_their_own_units():
    parts = {
        "up": nn.ConvTranspose2d(4, 6, 3, groups=2),
        "on": nn.Conv2d(6, 6, 1, groups=3),
        "head": nn.Conv2d(6, 2, 1),
    }
    model = Wired(lambda net, x: net.head(net.on(net.up(x))), **parts)
    full = {f"{name}.weight": torch.ones_like(part.weight, dtype=torch.bool) for name, part in parts.items()}
    mask = {name: kept.clone() for name, kept in full.items()}
    mask["up.weight"][2:, 1] = False  # the second output of the second group, channel 4
    mask["on.weight"][3] = False
    left = without_narrow_units(trace(model, torch.randn(2, 4, 5, 5)), mask, full, 1)
    assert torch.equal(left["up.weight"], mask["up.weight"]) and torch.equal(left["on.weight"], mask["on.weight"])


@pytest.mark.parametrize("count", ["multiply_adds", "bytes"])
def test_what_is_left_is_counted_as_asked(count):
    how = {"sparsity": 0.6, "data": X, "rounds": 2, "count": count}
    plain, narrow = (pathex.prune(small(), "px", **how, narrow=n) for n in (0, 12))
    assert 0.5 < narrow.mask.kept / plain.mask.kept < 2 and narrow.mask != plain.mask
    counted = "multiply-adds" if count == "multiply_adds" else "weights"
    with refused(f"narrow=1000 leaves .* {counted}, fewer than the .* asked for; allowed: less"):
        pathex.prune(small(), "magnitude", **how | {"sparsity": 0.1}, narrow=1000)


def test_what_it_does_not_go_with():
    with refused("narrow=3 needs structure='weights', not 'channels'"):
        pathex.prune(small(), "px", sparsity=0.5, data=X, rounds=1, structure="channels", narrow=3)
    with refused("method 'cts', which searches for .*, needs narrow=0, not 3"):
        pathex.prune(small(), "cts", sparsity=0.5, data=(X, torch.arange(6) % 4), narrow=3)
    with refused("narrow=3 needs allocation='global', not 'erk'"):
        pathex.prune(small(), "px", sparsity=0.5, data=X, allocation="erk", narrow=3)
    with refused("narrow=1000 leaves .* weights, fewer than the .* asked for; allowed: less"):
        pathex.prune(small(), "magnitude", sparsity=0.2, data=X, narrow=1000)
    with refused("narrow must be an integer of at least 0, got -1"):
        pathex.prune(small(), "px", sparsity=0.5, data=X, narrow=-1)
