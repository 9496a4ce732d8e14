"""How density falls from round to round, and the weights that are kept at a density."""

from collections.abc import Callable

import numpy as np

from pathex.errors import InvalidInput, UnknownName, check_integer

ADAPTIVE = "adaptive"
SCHEDULES = ("exponential", "linear", ADAPTIVE)

TOLERANCE = 0.05
"""Share of the weights kept that may differ in a step of an adaptive schedule."""


def read_schedule(schedule: str) -> tuple[str, float | None]:
    """Name and tolerance of a schedule: None of fixed ones, `TOLERANCE` of ``adaptive``; `InvalidInput` for others."""
    name, given, text = schedule.partition(":") if isinstance(schedule, str) else (schedule, "", "")
    if name not in SCHEDULES:
        raise UnknownName("schedule", schedule, SCHEDULES)
    if name != ADAPTIVE:
        if given:
            raise InvalidInput(f"schedule {schedule!r}: only {ADAPTIVE!r} takes a tolerance, {name!r} does not")
        return name, None
    try:
        tolerance = float(text) if given else TOLERANCE
    except ValueError:
        tolerance = float("nan")
    if not 0 <= tolerance <= 1:
        raise InvalidInput(f"schedule {schedule!r}: the tolerance must be a number in [0, 1], not {text!r}")
    return name, tolerance


def densities(start: float, end: float, rounds: int, schedule: str = "exponential") -> list[float]:
    """Density after each planned round.

    Exponential (Tanaka et al. 2020): ``start (end / start)^(t / rounds)``; linear: equal steps. The rounds of an
    adaptive schedule are some of the exponential one's, always with the last.

    Args:
        start: Density before the first round, in (0, 1].
        end: Density after the last round, in (0, start].
        rounds: Number of rounds.
        schedule: ``exponential``, ``linear``, ``adaptive`` or ``adaptive:TOLERANCE``, with a number in [0, 1].

    Returns:
        One density a round; the last is exactly ``end``.

    Raises:
        InvalidInput: If ``rounds`` is below 1, ``end`` is above ``start`` or the schedule is not known.

    Examples:
        >>> densities(1.0, 0.25, 2)
        [0.5, 0.25]
    """
    check_integer("rounds", rounds)
    name, _ = read_schedule(schedule)
    if end > start:
        raise InvalidInput(f"the start mask keeps {start:.6f} of the weights, fewer than the {end:.6f} asked for")
    if name == "linear":
        steps = [start - (start - end) * (t / rounds) for t in range(1, rounds)]
    else:
        steps = [start * (end / start) ** (t / rounds) for t in range(1, rounds)]
    return [*steps, end]


def counts(total: int, start: float, end: float, rounds: int, schedule: str, rounding: str | None = None) -> list[int]:
    """Weights kept after each planned round: the nearest number, or by the arithmetic of released code."""
    if rounding is None:
        return [round(density * total) for density in densities(start, end, rounds, schedule)]
    # Released code is given the density itself, not 1 - sparsity, and where products are whole numbers the last bit of
    # its own formulas decides: those of Synaptic-Flow (up) and FORCE (down).
    end, linear = min(round(end, 15), start), schedule == "linear"
    if rounding == "up":
        return [total - int((1.0 - density) * total) for density in densities(start, end, rounds, schedule)]
    whole = start - end if linear else -np.log(end / start)
    falls = [t * whole / rounds for t in range(1, rounds + 1)]
    # At least one, where FORCE's code stops.
    return [max(1, int(total * (start - fall if linear else start * np.exp(-fall)))) for fall in falls]


def next_step(last: int, left: int, tolerance: float, error: Callable[[int], float]) -> int:
    r"""How many planned rounds an adaptive schedule makes at once, by the rule that sets the steps of ODE solvers."""
    # The scores of the round before are as old now as the last step was long: where they would keep other weights than
    # the new ones, a step of that length was too long. With ``e(k)`` the share of the weights kept after k more planned
    # rounds that differ between the two, which grows in proportion to k (``benchmarks/fewer_rounds.py``),
    #     step = 2 last, if ``e(2 last) < tolerance``, else the largest k below it with ``k e(2 last) / (2 last) <=
    #     tolerance``, and at least 1.
    # A step at most doubles, so that no estimate speaks for scores much older than those it saw. The error counts
    # weights of the mask: only what changes it matters, and scores need no scale. Steps are whole rounds of the plan.
    trial = min(2 * last, left)
    if trial == 1:
        return 1
    differing = error(trial)
    if differing < tolerance:
        return trial
    return max(1, int(trial * tolerance / differing)) if differing > 0 else 1
