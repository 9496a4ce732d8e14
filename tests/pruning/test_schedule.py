import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathex.errors import InvalidInput, UnknownName
from pathex.pruning import densities, read_schedule
from pathex.pruning.schedule import SCHEDULES, TOLERANCE


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
