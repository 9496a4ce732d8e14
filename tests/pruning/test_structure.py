"""Tickets of whole channels and of N in every M weights."""

import contextlib
import itertools
import warnings

import pytest
import torch
from torch import nn

import pathex
from compaction.networks import NETWORKS, build
from pathex import compaction
from pathex.compaction import channel_groups
from pathex.errors import PathexWarning, UnsupportedOperation
from refusals import refused

SILENT = {"progress": False, "rounds": 2}


def scores_of(model, seed=0):
    """A method that gives each weight the same random score in each round."""
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}
    return lambda model, batches, mask: {name: scores[name] for name in mask}


def channels(model, x, sparsity, method=None, **how):
    return pathex.prune(
        model, method or scores_of(model), sparsity=sparsity, data=x[:2], structure="channels", **{**SILENT, **how}
    ).mask


@pytest.mark.parametrize("count", ["weights", "multiply_adds"])
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"shared"}))
def test_what_goes_is_taken_out_whole(name, count):
    model, x = build(name, 0)
    plan = compaction.plan(model, channels(model, x, 0.4, count=count), x[:1])
    assert plan.mask.density == 1
    assert 0.3 < sum(p.numel() for p in plan.apply().parameters()) / sum(p.numel() for p in model.parameters()) < 0.95


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(4, 3)


def worths(scores):
    """Mean score of the weights around each hidden unit."""
    a, b, c = (scores[f"{n}.weight"].double() for n in (0, 2, 4))
    first = (a.sum(1) + b.sum(0)) / (3 + 4)
    return first, (b.sum(1) + c.sum(0)) / (6 + 2)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.7])
def test_the_best_units_for_their_cost_are_kept_as_many_as_fit(sparsity):
    model, x = perceptron()
    method = scores_of(model)
    mask = channels(model, x, sparsity, method, rounds=1)
    first, second = worths(method(model, [], mask))
    limit = round((1 - sparsity) * mask.total)

    def size(h, k):
        return 3 * h + h * k + k * 2

    rows, inner = mask["0.weight"].any(1), mask["2.weight"].any(1)
    assert mask.kept == size(int(rows.sum()), int(inner.sum())) <= limit
    for kept, worth in ((rows, first), (inner, second)):  # of one layer all cost the same
        assert set(worth.topk(int(kept.sum())).indices.tolist()) == set(kept.nonzero().flatten().tolist())
    more = ((int(rows.sum()) + a, int(inner.sum()) + b) for a, b in ((1, 0), (0, 1)))
    assert all(size(h, k) > limit for h, k in more if h <= 6 and k <= 4)


def test_a_budget_of_multiply_adds_is_kept_and_each_layer_has_a_channel():
    model, x = build("residual", 1)
    costs = pathex.analysis.count(model, tuple(x.shape[1:]))
    groups = channel_groups(model, x[:1], list(channels(model, x, 0.1)))
    for sparsity in (0.3, 0.8):
        mask = channels(model, x, sparsity, count="multiply_adds")
        dense = sum(costs.products[name] for name in mask)
        spent = sum(costs.products[name] * kept / total for name, (kept, total) in mask.counts().items())
        assert spent <= (1 - sparsity) * dense
        assert all(count.kept for count in mask.counts().values())
        kept = torch.tensor(
            [bool(groups.sums({n: e.double() for n, e in mask.items()})[g]) for g in range(groups.count)]
        )
        for group in (~kept).nonzero().flatten().tolist():
            more = kept.clone()
            more[group] = True
            wider = groups.masked(more, {n: torch.ones_like(e) for n, e in mask.items()})
            cost = sum(costs.products[n] * int(e.sum()) / e.numel() for n, e in wider.items())
            assert cost > (1 - sparsity) * dense


def test_heads_and_hidden_widths_of_attention():
    model, x = build("transformer", 0)
    mask = channels(model, x, 0.3)
    small = pathex.compact(model, mask, x[:1])
    torch.testing.assert_close(small(x), pathex.make_permanent(model, mask)(x), rtol=1e-9, atol=1e-9)


def test_a_layer_that_is_ignored_keeps_what_it_writes_and_may_lose_what_it_reads():
    model, x = perceptron()
    mask = channels(model, x, 0.3, ignore=["2"])
    assert set(mask) == {"0.weight", "4.weight"} and mask["4.weight"].all()
    small = pathex.compact(model, mask, x)
    assert small[0].out_features == small[2].in_features < 6
    assert small[2].out_features == 4


def test_a_mask_to_start_from_is_never_left():
    model, x = build("depthwise", 0)
    start = pathex.prune(model, "random", sparsity=0.3, data=x[:2], progress=False).mask
    mask = channels(model, x, 0.6, mask=start)
    assert mask.kept <= round(0.4 * mask.total)
    assert not any((mask[name] & ~start[name]).any() for name in mask)


@pytest.mark.parametrize("method", ["px", "snip", "magnitude", "synflow"])
@pytest.mark.parametrize("schedule", ["exponential", "adaptive"])
def test_methods_in_rounds(method, schedule):
    model, x = build("residual", 0)
    data = [(x, torch.arange(len(x)) % 2)]
    how = {"sparsity": 0.5, "data": data, "schedule": schedule, "rounds": 4, "progress": False}
    result = pathex.prune(model, method, structure="channels", **how)
    assert not result.report.dead_layers and result.mask.metadata["structure"] == "channels"
    assert 0.4 < result.mask.density <= 0.5


def blocks(entry, of):
    return entry.movedim(1, -1).unflatten(-1, (-1, of)).sum(-1)


@pytest.mark.parametrize(("structure", "rounds"), [("2:4", 1), ("2:4", 3), ("1:4", 4), ("3:6", 2)])
def test_n_of_every_m(structure, rounds):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(12, 24, 3), nn.ReLU(), nn.Conv2d(24, 12, 1), nn.Flatten(), nn.Linear(12 * 36, 5))
    most, of = map(int, structure.split(":"))
    method, how = scores_of(model), {"data": torch.randn(2, 12, 8, 8), "progress": False, "rounds": rounds}
    mask = pathex.prune(model, method, sparsity=1 - most / of, structure=structure, **how).mask
    scores = method(model, [], mask)
    for name, entry in mask.items():
        assert (blocks(entry, of) == most).all()
        if rounds == 1:
            least = scores[name].masked_fill(~entry, 2).movedim(1, -1).unflatten(-1, (-1, of)).amin(-1)
            most_left = scores[name].masked_fill(entry, -1).movedim(1, -1).unflatten(-1, (-1, of)).amax(-1)
            assert (least >= most_left).all()
    tied = pathex.prune(
        model, lambda model, batches, mask: dict(mask), sparsity=1 - most / of, structure=structure, **how
    )
    assert all((blocks(entry, of) == most).all() for entry in tied.mask.values())


def test_layers_whose_inputs_are_no_multiple_are_left_and_named():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 4, 1)
    )
    with pytest.warns(PathexWarning, match=r"no multiple of 4.*0\.weight, 1\.weight, 2\.weight"):
        mask = pathex.prune(model, "magnitude", sparsity=0.5, data=torch.randn(2, 3, 8, 8), structure="2:4").mask
    assert list(mask) == ["3.weight"]
    start = mask
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PathexWarning)
        how = {"sparsity": 0.75, "data": torch.randn(2, 3, 8, 8), "structure": "1:4"}
        assert not (pathex.prune(model, "magnitude", mask=start, **how).mask["3.weight"] & ~start["3.weight"]).any()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"structure": "filters"}, "'filters'.*2:4 .*channels, weights"),
        ({"structure": "4:2"}, "N must be less than M"),
        ({"structure": "2:4", "sparsity": 0.9}, "removes 0.5 .* not sparsity=0.9"),
        ({"structure": "2:4", "count": "multiply_adds"}, "needs count='weights', not 'multiply_adds'"),
        ({"structure": "2:4", "allocation": "erk"}, "needs allocation='global', not 'erk'"),
        ({"structure": "channels", "budget": "effective"}, "needs budget='nominal'"),
        ({"structure": "channels", "min_per_layer": 3}, "needs min_per_layer=0, not 3"),
        ({"structure": "channels", "sparsity": 0.95}, "one channel of each layer costs"),
        ({"structure": "3:7", "sparsity": 1 - 3 / 7}, "multiple of 7"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(how, words):
    model, x = perceptron()
    given = {"sparsity": 0.5, **how}
    with refused(words):
        pathex.prune(model, "magnitude", data=x, **given)


class Heads(nn.Module):
    """An attention of one's own, which may tell the number of its heads."""

    def __init__(self, width, heads, name):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        setattr(self, name, heads)
        self.name, self.each = name, width // heads

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, getattr(self, self.name), self.each)).permute(2, 0, 3, 1, 4)
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", ["num_heads", "parts"])
def test_attention_of_ones_own_loses_heads_or_it_is_said(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), Heads(8, 4, name), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(4, 7, 5)
    expected = pytest.warns(
        PathexWarning, match="all channels of 1 stay: they split channels, as into heads, .*num_heads"
    )
    with contextlib.nullcontext() if name == "num_heads" else expected:
        mask = channels(model, x, 0.6)
    heads = mask["1.qkv.weight"].unflatten(0, (3, 4, 2)).any(-1).any(-1).all(0)
    assert (int(heads.sum()) < 4) == (name == "num_heads")
    assert compaction.plan(model, mask, x).mask.density == 1  # what the mask removed, compaction takes out


def test_a_network_without_channels_that_can_go_is_refused():
    with refused("no channel of Sequential", UnsupportedOperation):
        channels(nn.Sequential(nn.Linear(3, 2)), torch.randn(2, 3), 0.5)


def test_every_group_is_a_class_of_places_that_compaction_removes_alone():
    for name, seed in itertools.product(("residual", "concatenated", "depthwise", "squeezed"), range(2)):
        model, x = build(name, seed)
        weights = pathex.masks.prunable_weights(model)
        groups = channel_groups(model, x[:1], list(weights))
        ones = {n: torch.ones(w.shape, dtype=torch.bool) for n, w in weights.items()}
        for group in range(0, groups.count, 3):
            keep = torch.ones(groups.count, dtype=torch.bool)
            keep[group] = False
            plan = compaction.plan(model, pathex.Mask(groups.masked(keep, ones)), x[:1])
            assert plan.mask.density == 1, (name, group)
