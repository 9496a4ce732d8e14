"""``pathex datasets``: the data sets."""

from collections.abc import Sequence

from pathex.cli._listing import show, wanted

__all__ = ["execute"]


def execute(words: Sequence[str]) -> None:
    """Carries out the command.

    Args:
        words: What follows ``pathex datasets``.
    """
    name = wanted("datasets", words, "Lists the data sets, or tells of one.")
    from pathex import data

    if name is None:
        show("data set", [(each, data.describe(each)) for each in data.names()])
    else:
        options = " ".join(f"--data-options.{option}" for option in data.option_names(name))
        show("data set", [(name, data.describe(name)), ("options", options)])
