"""Schedules of densities: closed forms, and steps that adapt to the scores against their twin."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pathex
from brute_force import adaptive
from pathex.errors import InvalidInput, UnknownName
from pathex.masks import Mask
from pathex.pruning import densities, read_schedule
from pathex.pruning import rounds as pruning
from pathex.pruning.schedule import SCHEDULES, TOLERANCE, next_step
from pathex.pruning.updater import RoundUpdater


def test_closed_forms():
    assert densities(1.0, 0.25, 2) == [0.5, 0.25]
    assert densities(0.8, 0.2, 3, "linear") == pytest.approx([0.6, 0.4, 0.2])
    assert densities(0.8, 0.1, 3) == pytest.approx([0.4, 0.2, 0.1])
    assert densities(0.8, 0.1, 3, "adaptive:0.1") == densities(0.8, 0.1, 3)
    found = [read_schedule(name) for name in ("linear", "adaptive", "adaptive:1e-2")]
    assert found == [("linear", None), ("adaptive", TOLERANCE), ("adaptive", 0.01)]


@given(st.floats(0.01, 1), st.floats(0.001, 1), st.integers(1, 200), st.sampled_from(SCHEDULES))
def test_falls_from_start_to_exactly_the_end(start, part, rounds, schedule):
    end = start * part
    steps = densities(start, end, rounds, schedule)
    assert len(steps) == rounds and steps[-1] == end
    assert all(a >= b * (1 - 1e-12) for a, b in zip([start, *steps], steps, strict=False))


TOLERANCES = ("", "much", "-0.1", "1.5", "nan", "inf", "0.1:0.2")
BAD = [
    *(((1.0, 0.5, rounds), "rounds") for rounds in (0, -1, 1.5, True, "3")),
    ((0.5, 0.6, 3), r"0\.5.*0\.6"),
    *(((1, 0.5, 3, f"adaptive:{t}"), r"the tolerance must be a number in \[0, 1\], not ") for t in TOLERANCES),
    *(((1, 0.5, 3, name), "only 'adaptive' takes a tolerance") for name in ("linear:0.1", "exponential:0")),
    *(
        ((1, 0.5, 3, name), "unknown schedule .*Known: adaptive, exponential, linear")
        for name in ("cosine", "cosine:0.1", "adaptively", "", None, 3)
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_refusals(arguments, message):
    with pytest.raises(UnknownName if message.startswith("unknown") else InvalidInput, match=message):
        densities(*arguments)


SHAPES = {"a": (20, 10), "b": (10, 30), "c": (5, 8)}
SIZE = 540
FULL = torch.ones(SIZE, dtype=torch.bool)


def split(vector):
    parts = vector.split([a * b for a, b in SHAPES.values()])
    return {name: part.view(shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


def joined(mask):
    return torch.cat([entry.flatten() for entry in mask.values()])


def ageing(noise):
    """Scores that change with what is there, faster as it thins out, as those of px do."""
    base = torch.randn(SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    links = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return lambda there, number: base.exp() * (1 + noise * (links @ (~there).double()).tanh())


def ours(score, start, rounds, tolerance, density=0.1, **how):
    """Planned rounds reached, and masks."""
    updater = RoundUpdater(Mask(split(start)), density, rounds, schedule=f"adaptive:{tolerance}", **how)
    current, made = updater.start, []
    while updater.reached < rounds:
        number = len(made) + 1
        current = updater.choose(split(score(joined(current), number)), current, number, lambda mask: mask)
        made.append((updater.reached, current))
    return made


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("tolerance", [0.0, 0.0137, 0.0371, 0.1234, 1.0])
def test_steps_and_masks_are_those_of_the_twin(tolerance, noise, dense):
    start = torch.rand(SIZE, generator=torch.Generator().manual_seed(3)) < (2.0 if dense else 0.8)
    scores = ageing(noise)

    def listed(there, number):
        mask = torch.zeros(SIZE, dtype=torch.bool)
        mask[list(there)] = True
        return scores(mask, number).tolist()

    expected = adaptive.prune(listed, set(start.nonzero().flatten().tolist()), SIZE, 0.1, 40, tolerance)
    actual = ours(scores, start, 40, tolerance)
    assert [reached for reached, _ in actual] == [reached for reached, _ in expected]
    for (_, mask), (_, there) in zip(actual, expected, strict=True):
        assert set(joined(mask).nonzero().flatten().tolist()) == there


def test_the_steps_of_the_twin_are_of_all_kinds_and_a_method_may_reuse_its_tensors():
    scores, buffer = ageing(0.3), torch.zeros(SIZE, dtype=torch.float64)
    reused = ours(lambda there, number: buffer.copy_(scores(there, number)), FULL, 40, 0.0371)
    reached = [0, *(place for place, _ in ours(scores, FULL, 40, 0.0371))]
    assert [place for place, _ in reused] == reached[1:]
    steps = [b - a for a, b in itertools.pairwise(reached)]
    assert max(steps) > 2 and any(b < a for a, b in itertools.pairwise(steps[:-1])) and len(steps) < 40


@given(st.integers(1, 50), st.integers(1, 50), st.floats(0, 1), st.floats(0, 1))
def test_a_step_doubles_at_most_and_never_goes_past_the_end(last, left, tolerance, wrong):
    asked = []
    step = next_step(last, left, tolerance, lambda k: asked.append(k) or wrong)
    assert 1 <= step <= min(2 * last, left)
    assert asked in ([], [min(2 * last, left)])
    # What is tolerated is taken, and no more: the error is read as proportional to the step.
    assert step == 1 or step * wrong / asked[0] <= tolerance * (1 + 1e-12)
    assert step == min(2 * last, left) or (step + 1) * wrong / asked[0] >= tolerance * (1 - 1e-12)


def test_steps_double_while_scores_are_constant_and_are_single_where_they_are_unrelated():
    constant = ours(lambda *_: torch.arange(SIZE).double(), FULL, 100, 0.01)
    assert [place for place, _ in constant] == [1, 3, 7, 15, 31, 63, 100]
    unrelated = ours(lambda *_: torch.rand(SIZE, dtype=torch.float64), FULL, 100, 0.01)
    assert [place for place, _ in unrelated] == list(range(1, 101))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.floats(0.02, 0.9), st.floats(0, 0.5), st.booleans())
def test_counts_are_those_of_the_plan_and_nothing_returns(rounds, density, tolerance, back):
    made = ours(ageing(0.5), FULL, rounds, tolerance, density, revives=back)
    plan = densities(1.0, density, rounds)
    assert len(made) <= rounds and made[-1][0] == rounds
    assert [mask.kept for _, mask in made] == [round(plan[reached - 1] * SIZE) for reached, _ in made]
    assert back or all((b - a).kept == 0 for (_, a), (_, b) in itertools.pairwise(made))


def rows(result):
    return [row["reached"] for row in result.history]


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("method", ["px", "force", "phew", "prospr"])
def test_methods_of_every_kind_reach_the_end(method, model, images, monkeypatch):
    data = [(images, torch.arange(8) % 4)]
    options = {"walks": 10} if method == "phew" else {}
    found = []
    monkeypatch.setattr(pruning, "_bar", lambda wanted: nullcontext(lambda *shown: found.append(shown)))
    result = pathex.prune(model, method, sparsity=0.7, data=data, rounds=6, schedule="adaptive:0.2", **options)
    assert result.mask.kept == round((1 - 0.7) * result.mask.total)
    assert len(rows(result)) <= 6 and rows(result)[-1] == 6
    # The progress bar ends full.
    assert found == [(row, 6) for row in rows(result)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_tolerance_is_the_exponential_schedule(model, images, dtype):
    shared = {"sparsity": 0.9, "data": images.to(dtype), "rounds": 8}
    plain = pathex.prune(model.to(dtype), "px", **shared)
    every = pathex.prune(model, "px", schedule="adaptive:0", **shared)
    assert every.mask == plain.mask
    assert rows(every) == rows(plain) == list(range(1, 9))


def test_a_larger_tolerance_makes_fewer_rounds_and_the_mask_tells_which_it_was(model, images):
    def adaptive(sparsity, rounds, schedule):
        return pathex.prune(model, "px", sparsity=sparsity, data=images, rounds=rounds, schedule=schedule)

    made = [len(rows(adaptive(0.9, 40, f"adaptive:{tolerance}"))) for tolerance in (0.005, 0.05, 0.5)]
    assert 40 >= made[0] > made[1] > made[2] == 6
    assert rows(adaptive(0.5, 1, "adaptive")) == [1]
    mask = adaptive(0.5, 4, "adaptive").mask
    assert mask.metadata["schedule"] == f"adaptive:{TOLERANCE:g}" and mask.metadata["rounds"] == 4
    named = adaptive(0.5, 4, mask.metadata["schedule"]).mask
    assert named == mask and named.metadata == mask.metadata
