import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathex.pruning.topk import keep_best

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
    masks = {name: torch.zeros(score.numel(), dtype=torch.bool) for name, score in scores.items()}
    for name, index in kept:
        masks[name][index] = True
    return {name: mask.view(scores[name].shape) for name, mask in masks.items()}


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
    scores = {f"l{i}": torch.randn(30, 20).mul(8).round().div(8).to(dtype) for i in range(4)}
    allowed = {name: torch.rand(score.shape) > 0.3 for name, score in scores.items()}
    for count in (0, 1, 7, 500, 1500, sum(int(mask.sum()) for mask in allowed.values())):
        kept, expected = keep_best(scores, allowed, count, seed=5), sorted_out(scores, allowed, count, 5, {})
        assert all(torch.equal(kept[name], expected[name]) for name in scores)


def test_scores_that_only_the_higher_precision_tells_apart():
    scores = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([1.0 + 1e-12, 1.0 - 1e-12], dtype=torch.float64)}
    allowed = {name: torch.ones(2, dtype=torch.bool) for name in scores}
    kept = keep_best(scores, allowed, 3)
    assert kept["a"].all() and kept["b"].tolist() == [True, False]
