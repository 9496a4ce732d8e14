import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import Wired
from pathex.errors import InvalidInput, UnknownName

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
        ({"count": "flops"}, UnknownName, "unknown count 'flops'. Known: multiply_adds, weights"),
        ({"allocation": "erk"}, InvalidInput, "needs allocation='global'"),
        ({"sparsity": 1 - 1e-9}, InvalidInput, "keeps none of the 13864 multiply-adds"),
    ],
)
def test_what_cannot_be_counted(network, options, error, message):
    with pytest.raises(error, match=message):
        pruned(network, "magnitude", **options)


def test_a_start_mask_must_allow_it(network):
    start = pruned(network, "random", sparsity=0.9, count="weights").mask
    with pytest.raises(InvalidInput, match=r"the start mask keeps \d+ multiply-adds, fewer than the 12478"):
        pruned(network, "magnitude", sparsity=0.1, mask=start)
