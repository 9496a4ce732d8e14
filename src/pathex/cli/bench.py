"""``pathex bench``: a place kept for measuring the user's own network."""

from pathex.cli.parser import Command


def _execute(_: object) -> None:
    print("pathex bench will measure your own network in a later release; see benchmarks/ for the suites of pathex")


COMMAND = Command("will measure your own network in a later release", _execute)
