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


@given(st.floats(0.01, 1), st.floats(0.001, 1), st.integers(1, 200), st.sampled_from(SCHEDULES))
def test_falls_from_start_to_exactly_the_end(start, part, rounds, schedule):
    end = start * part
    steps = densities(start, end, rounds, schedule)
    assert len(steps) == rounds and steps[-1] == end
    assert all(a >= b * (1 - 1e-12) for a, b in zip([start, *steps], steps, strict=False))


@pytest.mark.parametrize("rounds", [0, -1, 1.5, True, "3"])
def test_rounds_are_positive_integers(rounds):
    with pytest.raises(InvalidInput, match="rounds"):
        densities(1.0, 0.5, rounds)


def test_density_never_rises():
    with pytest.raises(InvalidInput, match=r"0\.5.*0\.6"):
        densities(0.5, 0.6, 3)


def test_schedules_are_read():
    assert read_schedule("linear") == ("linear", None)
    assert read_schedule("adaptive") == ("adaptive", TOLERANCE)
    assert read_schedule("adaptive:1e-2") == ("adaptive", 0.01)
    assert densities(0.8, 0.1, 3, "adaptive:0.1") == densities(0.8, 0.1, 3)


BAD = {
    r"the tolerance must be a number in \[0, 1\], not ": [
        f"adaptive:{text}" for text in ("", "much", "-0.1", "1.5", "nan", "inf", "0.1:0.2")
    ],
    "only 'adaptive' takes a tolerance": ["linear:0.1", "exponential:0"],
    "unknown schedule .*Known: adaptive, exponential, linear": ["cosine", "cosine:0.1", "adaptively", "", None, 3],
}


@pytest.mark.parametrize(("message", "schedule"), [(message, s) for message, all_bad in BAD.items() for s in all_bad])
def test_other_schedules_are_refused(message, schedule):
    with pytest.raises(UnknownName if message.startswith("unknown") else InvalidInput, match=message):
        densities(1.0, 0.5, 3, schedule)


SHAPES = {"a": (20, 10), "b": (10, 30), "c": (5, 8)}
SIZE = 540


def everything(mask):
    return mask


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
        current = updater.choose(split(score(joined(current), len(made) + 1)), current, len(made) + 1, everything)
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


def test_the_twin_makes_all_kinds_of_steps():
    full = torch.ones(SIZE, dtype=torch.bool)
    reached = [0, *(place for place, _ in ours(ageing(0.3), full, 40, 0.0371))]
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


@pytest.mark.parametrize(
    ("score", "reached"),
    [
        (lambda number: torch.arange(SIZE).double(), [1, 3, 7, 15, 31, 63, 100]),  # constant ones double every step
        (lambda n: torch.rand(SIZE, generator=torch.Generator().manual_seed(n), dtype=torch.float64), [*range(1, 101)]),
    ],
    ids=["constant", "unrelated"],
)
def test_the_longest_and_the_shortest_steps(score, reached):
    made = ours(lambda there, number: score(number), torch.ones(SIZE, dtype=torch.bool), 100, 0.01)
    assert [place for place, _ in made] == reached


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.floats(0.02, 0.9), st.floats(0, 0.5), st.booleans())
def test_counts_are_those_of_the_plan_and_nothing_returns(rounds, density, tolerance, back):
    full = torch.ones(SIZE, dtype=torch.bool)
    made = ours(ageing(0.5), full, rounds, tolerance, density, revives=back)
    plan = densities(1.0, density, rounds)
    assert len(made) <= rounds and made[-1][0] == rounds
    assert [mask.kept for _, mask in made] == [round(plan[reached - 1] * SIZE) for reached, _ in made]
    masks = [Mask(split(full)), *(mask for _, mask in made)]
    gone = [(joined(b) & ~joined(a)).any() for a, b in itertools.pairwise(masks)]
    assert back or not any(gone)


def test_a_method_may_reuse_its_tensors():
    scores, buffer = ageing(0.4), torch.zeros(SIZE, dtype=torch.float64)
    full = torch.ones(SIZE, dtype=torch.bool)
    reusing = ours(lambda there, number: buffer.copy_(scores(there, number)), full, 30, 0.03)
    fresh = ours(scores, full, 30, 0.03)
    assert [reached for reached, _ in reusing] == [reached for reached, _ in fresh] != list(range(1, 31))


def rows(result):
    return [row["reached"] for row in result.history]


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("method", ["px", "force", "phew", "prospr"])
def test_methods_of_every_kind_reach_the_end(method, model, images, monkeypatch):
    data = [(images, torch.arange(8) % 4)]
    options = {"walks": 10} if method == "phew" else {}
    found = []
    monkeypatch.setattr(pruning, "_bar", lambda wanted, total: nullcontext((found.append(total), found.append)[1]))
    result = pathex.prune(model, method, sparsity=0.7, data=data, rounds=6, schedule="adaptive:0.2", **options)
    assert result.mask.kept == round((1 - 0.7) * result.mask.total)
    assert len(rows(result)) <= 6 and rows(result)[-1] == 6
    # The progress bar ends full.
    assert found == [6, *(b - a for a, b in itertools.pairwise([0, *rows(result)]))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_tolerance_is_the_exponential_schedule(model, images, dtype):
    shared = {"sparsity": 0.9, "data": images.to(dtype), "rounds": 8}
    plain = pathex.prune(model.to(dtype), "px", **shared)
    every = pathex.prune(model, "px", schedule="adaptive:0", **shared)
    assert every.mask == plain.mask
    assert rows(every) == rows(plain) == list(range(1, 9))


def test_one_round_is_one_round(model, images):
    assert rows(pathex.prune(model, "magnitude", sparsity=0.5, data=images, schedule="adaptive")) == [1]


def test_a_larger_tolerance_makes_fewer_rounds(model, images):
    made = [
        len(pathex.prune(model, "px", sparsity=0.9, data=images, rounds=40, schedule=f"adaptive:{share}").history)
        for share in (0.005, 0.05, 0.5)
    ]
    assert 40 >= made[0] > made[1] > made[2] == 6


def test_the_mask_tells_the_tolerance_it_was_found_with(model, images):
    mask = pathex.prune(model, "px", sparsity=0.5, data=images, rounds=4, schedule="adaptive").mask
    assert mask.metadata["schedule"] == f"adaptive:{TOLERANCE:g}" and mask.metadata["rounds"] == 4
    named = pathex.prune(model, "px", sparsity=0.5, data=images, rounds=4, schedule=mask.metadata["schedule"]).mask
    assert named == mask and named.metadata == mask.metadata
