"""``pathex methods``: the scorers and their cards."""

from collections.abc import Sequence

from pathex.cli._listing import show, wanted

__all__ = ["execute"]


def execute(words: Sequence[str]) -> None:
    """Carries out the command.

    Args:
        words: What follows ``pathex methods``.
    """
    name = wanted("methods", words, "Lists the pruning methods, or shows the card of one.")
    import pathex

    if name is not None:
        print(pathex.methods(name))
    else:
        show("method", [(known, pathex.methods(known).title) for known in pathex.methods()])
