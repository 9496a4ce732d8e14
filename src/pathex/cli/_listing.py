"""What the listing commands share: one table of names and lines."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pathex.cli._arguments import parse

__all__ = ["show", "wanted"]


@dataclass(frozen=True)
class ListConfig:
    """Options of the listing commands.

    Attributes:
        name: Show this one only; null lists all.
    """

    name: str | None = None


def wanted(command: str, words: Sequence[str], description: str) -> str | None:
    """Reads the words of a listing command.

    Args:
        command: Name of the command.
        words: What follows it.
        description: What it does.

    Returns:
        The name asked for, or None for all.
    """
    return parse(command, ListConfig, words, description, positional=("name", 1)).name


def show(heading: str, rows: Iterable[tuple[str, str]]) -> None:
    """Prints a table of names.

    Args:
        heading: Heading of the names.
        rows: Name and description.
    """
    from rich.text import Text

    from pathex.cli._console import console, table

    listed = table(heading, "")
    for name, line in rows:
        listed.add_row(Text(name, style="bold"), Text(line))
    console().print(listed)
