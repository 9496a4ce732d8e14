"""``pathex bench``: a place kept for measuring the user's own network."""

from pathex.cli.parser import Command


def _execute(_: object) -> None:
    suites = "the suites of pathex itself are in benchmarks/ of its repository"
    print(f"pathex bench will measure your own network in a later release; {suites}")


COMMAND = Command("will measure your own network in a later release", _execute)
