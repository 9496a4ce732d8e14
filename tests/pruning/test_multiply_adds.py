"""Budgets that count multiply-adds, or bytes of a file."""

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import Wired
from pathex.errors import InvalidInput, UnknownName
from pathex.masks import bytes_on_disk, write_mask

pytestmark = pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
COSTS = {"body.0.weight": 64, "body.3.weight": 16, "body.7.weight": 1, "spare.weight": 0}
TOTAL = 64 * 108 + 16 * 432 + 40


@pytest.fixture
def network():
    """Convolutions at two resolutions and a linear layer; `spare` never runs."""
    torch.manual_seed(3)
    layers = (nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return Wired(lambda net, x: net.body(x), body=body, spare=nn.Linear(3, 3))


def pruned(network, method, **options):
    usual = {"sparsity": 0.5, "data": torch.randn(2, 2, 8, 8), "rounds": 1, "count": "multiply_adds"}
    return pathex.prune(network, method, **(usual | options))


def spent(mask):
    return sum(COSTS[name] * count.kept for name, count in mask.counts().items())


def greedy(scores, limit):
    """The best weights for their costs until the next one is too much, one by one."""
    entries = [(name, i, float(entry)) for name, score in scores.items() for i, entry in enumerate(score.flatten())]
    ranked = [(entry / COSTS[name], COSTS[name], name, i) for name, i, entry in entries if COSTS[name]]
    kept = {name: torch.zeros(score.numel(), dtype=torch.bool) for name, score in scores.items()}
    for name in kept:
        kept[name] |= not COSTS[name]  # what never runs costs nothing
    for _, cost, name, index in sorted(ranked, reverse=True):
        if cost > limit:
            break
        limit -= cost
        kept[name][index] = True
    return {name: entry.view(scores[name].shape) for name, entry in kept.items()}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.99])
def test_the_best_weights_for_their_costs_are_kept(network, sparsity):
    data = torch.randn(4, 2, 8, 8)
    result = pruned(network, "magnitude", sparsity=sparsity, data=data)
    expected = greedy(pathex.score(network, "magnitude", data), round((1 - sparsity) * TOTAL))
    assert all(torch.equal(result.mask[name], expected[name]) for name in expected)
    assert result.mask.metadata["count"] == "multiply_adds" and result.mask.metadata["requested_sparsity"] == sparsity


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("px", {}),
        ("px", {"ignore": ["spare"], "budget": "effective"}),
        ("synflow", {"schedule": "adaptive"}),
        ("snip", {"min_per_layer": 5}),
        ("magnitude", {"budget": "effective"}),
    ],
)
def test_in_the_end_less_than_one_weight_is_left(network, method, options):
    data = [(torch.randn(8, 2, 8, 8), torch.arange(8) % 5)]
    result = pruned(network, method, sparsity=0.8, data=data, rounds=6, **options)
    left = round(0.2 * TOTAL) - spent(result.mask)
    assert 0 <= left < 64
    shares = [row["density"] for row in result.history]
    assert shares == sorted(shares, reverse=True) and shares[-1] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"count": "bytes", "allocation": "layer"},
            InvalidInput,
            "count='bytes' needs allocation='global', not 'layer'",
        ),
        ({"count": "bytes", "sparsity": 0.9999}, InvalidInput, "sparsity 0.9999 keeps none of the 589 weights"),
        ({"count": "flops"}, UnknownName, "unknown count 'flops'. Known: bytes, multiply_adds, weights"),
        ({"allocation": "erk"}, InvalidInput, "count='multiply_adds' needs allocation='global', not 'erk'"),
        ({"sparsity": 1 - 1e-9}, InvalidInput, "keeps none of the 13864 multiply-adds"),
    ],
)
def test_what_cannot_be_counted(network, options, error, message):
    with pytest.raises(error, match=message):
        pruned(network, "magnitude", **options)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("options", [{}, {"rounds": 5, "budget": "effective"}, {"rounds": 5, "min_per_layer": 3}])
def test_a_file_of_the_kept_weights_has_as_many_bytes(sparsity, options, tmp_path):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.Flatten(), nn.Linear(64 * 16, 4))
    given = {"sparsity": sparsity, "data": torch.randn(2, 3, 8, 8), "count": "bytes", "progress": False} | options
    mask = pathex.prune(model, "magnitude", **given).mask
    weights = {name: model.get_parameter(name).detach() for name in mask}
    dense, size = bytes_on_disk(weights), bytes_on_disk(weights, mask)
    assert 0 <= round((1 - sparsity) * dense) - size < 9  # a weight, and its place
    write_mask(mask, tmp_path / "ticket.safetensors", form="sparse", weights=weights)
    assert sparsity < 0.5 or (tmp_path / "ticket.safetensors").stat().st_size == size


def test_a_start_mask_must_allow_it(network):
    start = pruned(network, "random", sparsity=0.9, count="weights").mask
    with pytest.raises(InvalidInput, match=r"the start mask keeps \d+ multiply-adds, fewer than the 12478"):
        pruned(network, "magnitude", sparsity=0.1, mask=start)
