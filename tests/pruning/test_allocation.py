"""Which weights a round keeps: counts of layers, the best of many scores, floors, and weights that return."""

import itertools
import math
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import pathex.pruning.updater
from brute_force import proportions
from pathex.errors import InvalidInput, MaskMismatch, UnknownName
from pathex.masks import Mask, all_kept
from pathex.pruning import described, layer_densities
from pathex.pruning.allocation import fill, round_to_total
from pathex.pruning.topk import keep_best, keep_best_by_layer
from pathex.pruning.updater import RoundUpdater, keep_connected


def total(entries):
    return sum(int(entry.sum()) for entry in entries.values())


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.floats(0, 1), st.integers(0, 3))
def test_rounding_is_exact_within_limits_and_within_one(sizes, density, floor):
    limits = {str(i): size for i, size in enumerate(sizes)}
    count = round(density * sum(sizes))
    shares = {name: count * size / sum(sizes) for name, size in limits.items()}
    counts = round_to_total(shares, count, limits)
    assert sum(counts.values()) == count
    assert all(0 <= counts[n] <= limits[n] and abs(counts[n] - shares[n]) < 1 + 1e-6 for n in limits)
    if sum(min(floor, size) for size in sizes) <= count:
        secured = round_to_total(shares, count, limits, dict.fromkeys(limits, floor))
        assert sum(secured.values()) == count
        assert all(secured[n] >= min(floor, limits[n]) for n in limits)


def test_rounding_gives_to_the_largest_remainder_and_filling_exceeds_no_cap():
    counts = round_to_total({"a": 1.2, "b": 2.7, "c": 0.6, "d": 0.5}, 5, dict.fromkeys("abcd", 9))
    assert counts == {"a": 1, "b": 3, "c": 1, "d": 0}
    with pytest.raises(InvalidInput, match="5 weights are to be kept but only 4"):
        round_to_total({"a": 5.0}, 5, {"a": 4})
    with pytest.raises(InvalidInput, match="secures 3 weights but only 2"):
        round_to_total({"a": 2.0}, 2, {"a": 4}, {"a": 3})
    filled = fill({"a": 1.0, "b": 3.0}, 12.0, {"a": 10, "b": 10}, {"a": 1.0, "b": 0.6})
    assert filled == pytest.approx({"a": 0.6, "b": 0.6})


SHAPES = {"conv": (4, 2, 3, 3), "fc": (10, 4)}
FULL, UNEVEN = {"conv": 72, "fc": 40}, {"conv": 18, "fc": 40}
HALF = {"conv": torch.arange(72).view(4, 2, 3, 3) < 36}
NONE = {"conv": torch.zeros(4, 2, 3, 3, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("allocation", "density", "start", "expected"),
    [
        ("erk", 0.25, FULL, {"conv": 0.25 * 112 / 26 * 12 / 72, "fc": 0.25 * 112 / 26 * 14 / 40}),
        ("erk", 0.8, FULL, {"conv": (0.8 * 112 - 40) / 72, "fc": 1.0}),  # the small layer is full
        ("uniform", 0.3, FULL, {"conv": 0.3, "fc": 0.3}),
        ("uniform", 0.3, UNEVEN, {"conv": 0.25, "fc": (0.3 * 112 - 18) / 40}),
        ("layer", 0.3, UNEVEN, {"conv": 0.25 * 0.3 * 112 / 58, "fc": 0.3 * 112 / 58}),
        ({"fc": 0.5}, 0.25, FULL, {"conv": (28 - 20) / 72, "fc": 0.5}),
        (HALF, 0.25, FULL, {"conv": 28 / 76 * 0.5, "fc": 28 / 76}),  # what a mask does not name is dense
        (NONE, 40 / 112, FULL, {"conv": 0.0, "fc": 1.0}),  # and what it empties stays empty
    ],
)
def test_densities_of_layers(allocation, density, start, expected):
    assert layer_densities(allocation, density, SHAPES, start) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("allocation", "error", "message"),
    [
        ("global?", UnknownName, "unknown allocation 'global[?]'.* Known: erk, global, layer, uniform"),
        ({"head": 0.5}, UnknownName, "'head'.* Known: conv, fc"),
        ({"fc": 1.5}, InvalidInput, r"'fc' density 1\.5; allowed: 0 to 1"),
        ({"fc": math.nan}, InvalidInput, "allowed: 0 to 1"),
        ({"fc": 0.99}, InvalidInput, r"'fc' density 0\.99.* start mask keeps 0\.9500"),
        ({"fc": 0.9, "conv": 0.9}, InvalidInput, r"admits sparsity 0\.100000 to 0\.100000, not 0\.6"),
        ({"conv": 0.9}, InvalidInput, r"admits sparsity 0\.082143 to 0\.421429, not 0\.6"),
        (NONE, InvalidInput, r"keeps nothing of conv, so the sparsity is at least 0\.660714, not 0\.6"),
        ({"head": torch.ones(2) > 0}, UnknownName, "'head'.* Known: conv, fc"),
        ({"fc": torch.ones(10, 5) > 0}, MaskMismatch, r"\(10, 5\) for 'fc'; allowed: a mask of shape \(10, 4\)"),
        ({"fc": torch.ones(10, 4)}, MaskMismatch, "torch.float32"),
        ({"fc": torch.ones(10, 4) > 0, "conv": 0.5}, MaskMismatch, "allocation has 0.5 for 'conv'"),
    ],
)
def test_bad_allocations_name_what_is_allowed(allocation, error, message):
    with pytest.raises(error, match=message):
        layer_densities(allocation, 0.4, SHAPES, {"conv": 72, "fc": 38})
    assert issubclass(error, InvalidInput)


LAYERS = st.tuples(st.integers(1, 40), st.floats(0, 1), st.floats(0, 1))


@settings(max_examples=100, deadline=None)
@given(st.lists(LAYERS, min_size=1, max_size=6), st.floats(0.01, 1))
def test_densities_in_proportion_to_a_mask(layers, part):
    sizes = {str(i): size for i, (size, _, _) in enumerate(layers)}
    like = Mask({str(i): torch.arange(size) < round(size * own) for i, (size, own, _) in enumerate(layers)})
    start = {str(i): max(1, round(size * own)) for i, (size, _, own) in enumerate(layers)}
    weights = {name: count.kept / count.total for name, count in like.counts().items()}
    caps = {name: start[name] / size for name, size in sizes.items()}
    room = sum(start[name] for name in sizes if weights[name] > 0)
    assume(room)
    target = part * room
    found = layer_densities(like, target / sum(sizes.values()), {n: (s,) for n, s in sizes.items()}, start)
    assert found == pytest.approx(proportions.proportional(weights, target, sizes, caps), abs=1e-9)
    assert sum(found[name] * size for name, size in sizes.items()) == pytest.approx(target)


@pytest.mark.parametrize("seed", range(5))
def test_the_own_sparsity_of_a_mask_gives_its_counts(seed):
    source = torch.Generator().manual_seed(seed)
    like = Mask({f"l{i}": torch.rand(7 + 11 * i, 13, generator=source) < 0.1 + 0.2 * i for i in range(5)})
    start = Mask({name: torch.ones_like(entry) for name, entry in like.items()})
    assert RoundUpdater(start, like.density, 1, allocation=like).final == {n: c.kept for n, c in like.counts().items()}
    fewer = RoundUpdater(start, like.density / 2, 1, allocation=like).final
    assert fewer is not None and sum(fewer.values()) == round(like.kept / 2)
    assert all(abs(fewer[name] - count.kept / 2) <= 1 for name, count in like.counts().items())


def test_allocations_as_plain_data():
    assert described("erk") == "erk"
    assert described({"fc": 1}) == {"fc": 1.0}
    assert described(Mask({"fc": torch.arange(4) < 3})) == {"in proportion to": {"fc": 0.75}}


NAMES = ("a", "b")  # a: two inputs to two hidden units; b: two hidden units to two outputs


def connected(mask):
    """Kept weights of a network a (hidden, input), b (output, hidden) that lie on a path."""
    a, b = mask["a"], mask["b"]
    hidden = a.any(1) & b.any(0)
    return {"a": a & hidden[:, None], "b": b & hidden}


def of_places(scores, places):
    """Masks of the weights of these layers and indices."""
    return {n: torch.tensor([(n, i) in places for i in range(s.numel())]).view_as(s) for n, s in scores.items()}


def draws(seed, hidden=3):
    source = torch.Generator().manual_seed(seed)
    return {"a": torch.rand(hidden, 2, generator=source), "b": torch.rand(2, hidden, generator=source)}


@pytest.mark.parametrize("count", range(2, 10))
def test_connected_choice_is_connected_wherever_brute_force_finds_one(count):
    for seed in range(12):
        scores = draws(seed)
        allowed = {name: score < 0.85 for name, score in scores.items()}
        free = [(name, i) for name in NAMES for i in allowed[name].flatten().nonzero().flatten().tolist()]
        if count > len(free):
            continue
        kept = keep_connected(scores, allowed, count, connected, seed=seed)
        assert total(kept) == count
        assert all(not (kept[name] & ~allowed[name]).any() for name in NAMES)
        subsets = (of_places(scores, chosen) for chosen in itertools.combinations(free, count))
        assert (total(connected(kept)) == count) == any(total(connected(mask)) == count for mask in subsets)


def test_connected_choice_is_the_best_if_connected_and_keeps_floors_and_counts_if_nothing_connects():
    scores = draws(0)
    best, chosen = keep_best(scores, all_kept(scores), 11), keep_connected(scores, all_kept(scores), 11, connected)
    assert total(connected(best)) == 11 and all(torch.equal(chosen[name], best[name]) for name in NAMES)
    scores = draws(1)
    allowed = {"a": torch.ones(3, 2, dtype=torch.bool), "b": torch.zeros(2, 3, dtype=torch.bool)}
    assert total(keep_connected(scores, allowed, 4, connected)) == 4
    # The best unit has no way in: its two outgoing weights stay only because the floor says so.
    scores["b"][:, 0], scores["a"][0] = 9.0, 0.5
    allowed = {"a": torch.tensor([[False] * 2, [True] * 2, [True] * 2]), "b": torch.ones(2, 3, dtype=torch.bool)}
    kept = keep_connected(scores, allowed, 6, connected, at_least={"b": 2})
    assert kept["b"][:, 0].all() and total(kept) == 6


def test_connected_choice_asks_rarely(monkeypatch):
    counted, scores = MagicMock(side_effect=connected), draws(2, hidden=500)
    scores["b"] *= 1e-6
    kept = keep_connected(scores, all_kept(scores), 100, counted)
    assert total(kept) == total(connected(kept)) == 100
    assert counted.call_count < 120
    monkeypatch.setattr(pathex.pruning.updater, "_TRIALS", 0)
    assert total(keep_connected(scores, all_kept(scores), 100, connected)) == 100


def test_by_layer_each_count_is_kept_and_more_than_there_are_is_an_error():
    scores = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(5)}
    kept = keep_best_by_layer(scores, all_kept(scores), {"a": 2, "b": 3}, seed=3)
    assert kept["a"].flatten().tolist() == [False] * 4 + [True] * 2 and int(kept["b"].sum()) == 3
    scores = {"a": torch.tensor([9.0, 8.0, 7.0, 6.0]), "b": torch.tensor([1.0, 3.0, 2.0])}
    for choose in (keep_best, lambda *args: keep_connected(*args, lambda mask: mask)):
        with pytest.raises(InvalidInput, match="8 weights are to be kept but only 7 are left"):
            choose(scores, all_kept(scores), 8)
    with pytest.raises(InvalidInput, match="min_per_layer secures 3 weights but only 2"):
        keep_best(scores, all_kept(scores), 2, at_least={"b": 3})


VALUES = [0.0, -0.0, 1.0, 1.0 + 2**-20, 2.5, -1.0, 1e-40, 1e-30, 1e30, math.inf, -math.inf]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def split_mix(number):
    """The finalizer of SplitMix64, as a signed number."""
    state = number % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    state ^= state >> 31
    return state - 2**64 if state >= 2**63 else state


def sorted_out(scores, allowed, count, seed, at_least):
    """Floors first, then everything by score; ties by the hash of a weight's number among those of all layers."""
    where = [(name, index) for name, score in scores.items() for index in range(score.numel())]
    start = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    place = {entry: split_mix(start + number) for number, entry in enumerate(where)}

    def ranked(layers):
        there = [entry for entry in where if entry[0] in layers and bool(allowed[entry[0]].flatten()[entry[1]])]
        return sorted(there, key=lambda entry: (-float(scores[entry[0]].flatten()[entry[1]]), place[entry]))

    kept = [entry for name, floor in at_least.items() for entry in ranked({name})[:floor]]
    kept += [entry for entry in ranked(set(scores)) if entry not in kept][: count - len(kept)]
    return of_places(scores, set(kept))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_best_are_kept_and_ties_follow_the_order(data):
    scores, allowed = {}, {}
    for number in range(data.draw(st.integers(1, 4))):
        values = data.draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=14))
        dtype = data.draw(st.sampled_from(DTYPES))
        scores[f"l{number}"] = torch.tensor(values, dtype=torch.float64).to(dtype).view(-1, 1)
        there = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
        allowed[f"l{number}"] = torch.tensor(there).view(-1, 1)
    left = {name: int(mask.sum()) for name, mask in allowed.items()}
    floors = {name: data.draw(st.integers(0, min(2, number))) for name, number in left.items()}
    count, seed = data.draw(st.integers(sum(floors.values()), sum(left.values()))), data.draw(st.integers(0, 3))
    kept = keep_best(scores, allowed, count, seed=seed, at_least=floors)
    expected = sorted_out(scores, allowed, count, seed, floors)
    assert all(torch.equal(kept[name], expected[name]) for name in scores)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_weights_with_many_ties(dtype):
    torch.manual_seed(0)
    scores = {f"l{i}": torch.randn(30, 20).mul(8).round().div(8).to(dtype) for i in range(3)}
    scores["higher precision"] = scores["l0"].double() + 1e-12
    allowed = {name: torch.rand(score.shape) > 0.3 for name, score in scores.items()}
    for count in (0, 1, 7, 500, 1500, sum(int(mask.sum()) for mask in allowed.values())):
        kept, expected = keep_best(scores, allowed, count, seed=5), sorted_out(scores, allowed, count, 5, {})
        assert all(torch.equal(kept[name], expected[name]) for name in scores)


def start_mask():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (20, 10), "b": (10, 30), "c": (5, 8)}
    return Mask({name: torch.rand(shape, generator=generator) < 0.8 for name, shape in shapes.items()})


def scores_of(number):
    """Other scores in each round; removed weights have scores too."""
    generator = torch.Generator().manual_seed(number)
    return {name: torch.randn(entry.shape, generator=generator) for name, entry in start_mask().items()}


def masks_of_rounds(rounds=4, **options):
    updater, current, found = RoundUpdater(start_mask(), 0.2, rounds, **options), start_mask(), []
    for number in range(1, rounds + 1):
        current = updater.choose(scores_of(number), current, number, lambda mask: mask)
        found.append(current)
    return found


@pytest.mark.parametrize("allocation", ["global", "layer", "uniform", "erk", {"a": 0.25}], ids=str)
@pytest.mark.parametrize("schedule", ["exponential", "linear"])
def test_weights_return_within_the_start_mask_and_counts_stay_exact(allocation, schedule):
    options = {"allocation": allocation, "schedule": schedule}
    plain, reviving = masks_of_rounds(**options), masks_of_rounds(revives=True, **options)
    assert [mask.kept for mask in reviving] == [mask.kept for mask in plain]
    assert reviving[-1].kept == round(0.2 * start_mask().total)
    assert all((mask - start_mask()).kept == 0 for mask in reviving)
    for found, returns in ((plain, False), (reviving, True)):
        assert all(((later - before).kept > 0) == returns for before, later in itertools.pairwise(found))
    if isinstance(allocation, dict):
        assert int(reviving[-1]["a"].sum()) == 50


def test_every_round_keeps_the_best_of_the_start_mask():
    for number, mask in enumerate(masks_of_rounds(revives=True), 1):
        pool = torch.cat([score[start_mask()[name]] for name, score in scores_of(number).items()])
        threshold = pool.sort(descending=True).values[mask.kept - 1]
        assert all(torch.equal(mask[n], (s >= threshold) & start_mask()[n]) for n, s in scores_of(number).items())
    floored = masks_of_rounds(revives=True, min_per_layer=12)
    assert all(min(count.kept for count in mask.counts().values()) >= 12 for mask in floored)
    assert all((mask - start_mask()).kept == 0 for mask in floored)


def test_the_effective_budget_takes_back_what_lies_on_a_path():
    first = start_mask()["a"].clone()
    first[:, 5:] = False

    def connected(mask):
        """Only half of the weights of ``a`` lie on a path."""
        return Mask({**mask, "a": mask["a"] & first})

    for revives in (False, True):
        updater, current = RoundUpdater(start_mask(), 0.2, 2, budget="effective", revives=revives), start_mask()
        before = updater.choose(scores_of(1), current, 1, connected)
        after = updater.choose(scores_of(2), before, 2, connected)
        assert after.kept == round(0.2 * start_mask().total) and (after - connected(start_mask())).kept == 0
        assert ((after - before).kept > 0) == revives
