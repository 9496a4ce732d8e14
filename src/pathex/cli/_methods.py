"""``pathex methods``: the scorers and their cards."""

from collections.abc import Sequence
from types import MappingProxyType

from pathex.cli._listing import show, wanted

__all__ = ["execute"]

_OF_RUNS = MappingProxyType(
    {
        "dense": "No pruning",
        "small-dense": "A dense network as small as the ticket (options match, mask)",
        "imp": "Iterative magnitude pruning with rewinding (options levels, rewind, epochs)",
        "magnitude-after-training": "Magnitude of trained weights, once (options rewind, epochs)",
    }
)


def execute(words: Sequence[str]) -> None:
    """Carries out the command.

    Args:
        words: What follows ``pathex methods``.
    """
    name = wanted("methods", words, "Lists the pruning methods, or shows the card of one.")
    import pathex

    if name is not None and name in _OF_RUNS:
        show("method of pathex run", [(name, _OF_RUNS[name])])
    elif name is not None:
        print(pathex.methods(name))
    else:
        show("method", [(known, pathex.methods(known).title) for known in pathex.methods()])
        print()
        show("method of pathex run only", _OF_RUNS.items())
