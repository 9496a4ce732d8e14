"""``pathex bench``: a place kept for measuring the user's own network."""

from collections.abc import Sequence

__all__ = ["execute"]


def execute(words: Sequence[str]) -> None:
    """Says what the command will be.

    Args:
        words: What follows ``pathex bench``; nothing is read yet.
    """
    suites = "the suites of pathex itself are in benchmarks/ of its repository"
    print(f"pathex bench will measure your own network in a later release; {suites}")
