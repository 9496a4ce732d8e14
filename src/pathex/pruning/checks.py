"""What does not go together in a prune."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pathex import scores as scorers
from pathex.errors import InvalidInput, check_integer
from pathex.pruning.scoring import CustomMethod, name_of

_OF_SEARCHES: Mapping[str, object] = MappingProxyType(
    {"count": "weights", "structure": "weights", "budget": "nominal", "min_per_layer": 0, "min_per_output": 0}
)


def searches(method: str | CustomMethod) -> bool:
    """Whether a method searches for its mask, and can go on from a checkpoint."""
    return getattr(scorers.resolve(method), "trains", False) is True


def check_search(method: str | CustomMethod, rounds: int | None, given: Mapping[str, Any]) -> None:
    """Refuse a search in several rounds, or for anything but the best of all weights or of those of each layer."""
    if not searches(method):
        return
    if rounds not in (None, 1):
        raise InvalidInput(f"{name_of(method)} searches for the mask in one round, not {rounds}; leave rounds= out")
    for name, allowed in _OF_SEARCHES.items():
        if given[name] != allowed:
            raise InvalidInput(
                f"{name} is {given[name]!r} with method {name_of(method)!r}, which searches for so many of the best "
                f"weights; allowed: {allowed!r}"
            )


def read_checkpoint(checkpoint: str | os.PathLike[str] | None, method: str | CustomMethod) -> Path | None:
    """The file of a search."""
    if checkpoint is None:
        return None
    if not searches(method):
        known = [name for name in scorers.names() if scorers.find(name).trains]
        raise InvalidInput(f"checkpoint= is for methods that search: {', '.join(known)}; not {name_of(method)!r}")
    path = Path(checkpoint) if isinstance(checkpoint, str | os.PathLike) else None
    if path is None or path.is_dir() or not path.parent.is_dir():
        raise InvalidInput(f"checkpoint {checkpoint!r} must name a file in a folder that exists")
    return path


def check_outputs(least: int, given: Mapping[str, Any]) -> None:
    """Refuse a number of weights for each output that cannot be kept."""
    if check_integer("min_per_output", least, 0) and given["budget"] != "nominal":
        raise InvalidInput(f"min_per_output={least} needs budget='nominal', not {given['budget']!r}")


def read_narrow(narrow: int, method: str | CustomMethod, given: Mapping[str, Any]) -> int:
    """The number of weights below which a unit is given up."""
    if not check_integer("narrow", narrow, 0):
        return 0
    if searches(method):
        raise InvalidInput(f"narrow={narrow} needs a method that scores, which {name_of(method)!r} does not")
    for name, allowed in (("structure", "weights"), ("allocation", "global")):
        if given[name] != allowed:
            raise InvalidInput(f"narrow={narrow} needs {name}={allowed!r}, not {given[name]!r:.60}")
    return narrow
