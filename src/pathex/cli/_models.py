"""``pathex models``: the networks."""

from collections.abc import Sequence

from pathex.cli._listing import show, wanted

__all__ = ["execute"]


def execute(words: Sequence[str]) -> None:
    """Carries out the command.

    Args:
        words: What follows ``pathex models``.
    """
    name = wanted("models", words, "Lists the networks, or tells of one.")
    from pathex import models

    if name is not None:
        show("model", [(name, models.describe(name))])
    else:
        show("model", [*((own, models.describe(own)) for own in models.names()), *models.prefixes().items()])
