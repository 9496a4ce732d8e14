"""Outputs that nothing leads to any more are told, and each keeps weights where that is asked for."""

import pytest
import torch
from torch import nn

import pathex
from pathex.errors import LayerCollapse
from pathex.graph import trace
from pathex.paths import connectivity, output_places
from refusals import refused

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 5


def small():
    torch.manual_seed(0)
    return pathex.models.CifarResNet(8, num_classes=5, width=6)


def by_hand(scores, least, count):
    """The best weights of each class, then the best of all others."""
    kept = {name: torch.zeros(score.shape, dtype=torch.bool) for name, score in scores.items()}
    for row, score in zip(kept["fc.weight"], scores["fc.weight"], strict=True):
        for place in sorted(range(len(score)), key=lambda at: -float(score[at]))[:least]:
            row[place] = True
    ranked = [
        (float(score[place]), name, place)
        for name, score in scores.items()
        for place in map(tuple, (~kept[name]).nonzero().tolist())
    ]
    for _, name, place in sorted(ranked, reverse=True)[: count - int(kept["fc.weight"].sum())]:
        kept[name][place] = True
    return kept


@pytest.mark.parametrize("method", ["snip", "magnitude", "grasp"])
@pytest.mark.parametrize("least", [1, 4, 100])
def test_each_class_keeps_its_best_weights_before_all_others(method, least):
    model, data = small(), (X, LABELS)
    mask = pathex.prune(model, method, sparsity=0.9, data=data, rounds=1, min_per_output=least).mask
    wanted = by_hand(pathex.score(model, method, data), least, mask.kept)
    assert all(torch.equal(mask[name], kept) for name, kept in wanted.items())
    assert mask.kept == round(0.1 * mask.total) and mask.metadata["min_per_output"] == least


MORE = [{}, {"allocation": "erk"}, {"schedule": "adaptive"}, {"count": "multiply_adds"}, {"count": "bytes"}]
MORE += [{"min_per_layer": 5}, {"narrow": 2}]


@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
@pytest.mark.parametrize("more", MORE, ids=str)
@pytest.mark.parametrize("method", ["random", "px", "ntk-sap"])
def test_so_in_every_round(method, more):
    masks, how = [], {"sparsity": 0.95, "rounds": 6, "data": X, "min_per_output": 3}
    result = pathex.prune(small(), method, **how, **more, on_round=lambda _, mask: masks.append(mask))
    assert all((mask["fc.weight"].sum(1) >= 3).all() for mask in masks)
    plain = pathex.prune(small(), method, **{**how, "min_per_output": 0}, **more).mask
    assert result.mask.kept == plain.kept or more.get("count") in ("multiply_adds", "bytes")


class TwoHeads(nn.Module):
    """Outputs are made of a grouped convolution and of a transposed one, and scaled behind them."""

    def __init__(self):
        super().__init__()
        self.body, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(6)
        self.first, self.second = nn.Conv2d(8, 6, 1, groups=2), nn.ConvTranspose2d(8, 6, 1)

    def forward(self, x):
        x = self.body(x).relu()
        return self.norm(self.first(x) + self.second(x)).mean((2, 3))


def test_what_makes_outputs_is_found_behind_any_layer():
    model = TwoHeads()
    mask = pathex.prune(model, "random", sparsity=0.8, data=X, min_per_output=2).mask
    assert output_places(trace(model, X), mask).keys() == {"first.weight", "second.weight"}
    assert (mask["first.weight"].flatten(1).sum(1) >= 2).all()  # outputs come first
    assert (mask["second.weight"].sum((0, 2, 3)) >= 2).all()  # and in a transposed convolution second
    head = pathex.prune(nn.Sequential(nn.Linear(4, 3)), "random", sparsity=0.5, data=torch.ones(2, 4), min_per_output=2)
    assert head.mask["0.weight"].sum(1).tolist() == [2, 2, 2]


@pytest.mark.parametrize("seed", range(6))
def test_outputs_are_dead_where_positive_weights_lead_nothing_to_them(seed):
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 6, 3, bias=False), nn.Flatten(), nn.Linear(96, 9)
    model = nn.Sequential(*layers)
    model[-1].bias.data.zero_()
    mask = {name: torch.rand(weight.shape) < 0.02 for name, weight in model.named_parameters() if weight.dim() > 1}
    found = connectivity(model, mask, X)
    with torch.no_grad():
        for name, kept in mask.items():
            weight = model.get_parameter(name)
            weight.copy_(weight.abs() * kept)
        reached = model(torch.ones(1, 3, 8, 8))[0]
    assert found.dead_outputs == (reached == 0).nonzero().flatten().tolist()


def test_dead_outputs_are_said_once_and_with_strict_an_error():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    scores = {"0.weight": torch.ones(4, 3, 3, 3), "4.weight": torch.ones(3, 4)}
    scores["4.weight"][1] = 0
    how = {"sparsity": 0.1, "data": X, "rounds": 1}
    with pytest.warns(LayerCollapse, match=r"^no path is left to output 1; min_per_output= keeps weights of each$"):
        report = pathex.prune(net, lambda *_: scores, **how).report
    assert report.dead_outputs == [1] and report.dead_layers == [] and report.channels == {"0.weight": 4, "4.weight": 3}
    with pytest.raises(LayerCollapse, match="output 1"):
        pathex.prune(net, lambda *_: scores, **how, strict=True)
    again = pathex.prune(net, lambda *_: scores, **how, min_per_output=1, strict=True)
    assert again.report.dead_outputs == [] and int(again.mask["4.weight"][1].sum()) == 1
    start = pathex.Mask({name: score > 0 for name, score in scores.items()})  # dead before
    assert pathex.prune(net, "magnitude", **how, mask=start, strict=True).report.dead_outputs == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"min_per_output": -1}, "min_per_output must be an integer of at least 0, got -1"),
        ({"min_per_output": 3, "budget": "effective"}, "min_per_output=3 needs budget='nominal', not 'effective'"),
        ({"min_per_output": 3, "structure": "channels"}, "needs min_per_output=0, not 3"),
        ({"min_per_output": 9, "sparsity": 0.999}, "min_per_output secures 45 weights but only 11"),
        (
            {"min_per_output": 9, "sparsity": 0.9, "allocation": {"fc.weight": 0.1}},
            "min_per_output secures 45 weights of 'fc.weight', but only 12",
        ),
        (
            {"method": "cts", "min_per_output": 1, "rounds": None},
            "method 'cts', which .* needs min_per_output=0, not 1",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(more, said):
    with refused(said):
        pathex.prune(small(), data=(X, LABELS), **{"method": "magnitude", "sparsity": 0.5, **more})
