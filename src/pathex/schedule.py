"""How density falls from round to round."""

from pathex.errors import InvalidInput, UnknownName

__all__ = ["SCHEDULES", "densities"]

SCHEDULES = ("exponential", "linear")


def densities(start: float, end: float, rounds: int, schedule: str = "exponential") -> list[float]:
    """Density after each round.

    Exponential (Tanaka et al. 2020): ``start (end / start)^(t / rounds)``; linear: equal steps.

    Args:
        start: Density before the first round, in (0, 1].
        end: Density after the last round, in (0, start].
        rounds: Number of rounds.
        schedule: ``exponential`` or ``linear``.

    Returns:
        One density a round; the last is exactly ``end``.

    Raises:
        InvalidInput: If ``rounds`` is below 1 or ``end`` is above ``start``.
        UnknownName: If the schedule is not known.

    Example:
        >>> densities(1.0, 0.25, 2)
        [0.5, 0.25]
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise InvalidInput(f"rounds must be an integer of at least 1, not {rounds!r}")
    if schedule not in SCHEDULES:
        raise UnknownName("schedule", schedule, SCHEDULES)
    if end > start:
        raise InvalidInput(f"the start mask keeps {start:.6f} of the weights, fewer than the {end:.6f} asked for")
    if schedule == "linear":
        steps = [start + (end - start) * t / rounds for t in range(1, rounds)]
    else:
        steps = [start * (end / start) ** (t / rounds) for t in range(1, rounds)]
    return [*steps, end]
