"""What does not go together in a prune."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pathex import scores as scorers
from pathex.errors import InvalidInput, check_integer, check_name
from pathex.pruning.schedule import SCHEDULES
from pathex.pruning.scoring import CustomMethod, name_of
from pathex.pruning.updater import BUDGETS

_PLAIN: Mapping[str, Sequence[object]] = MappingProxyType(
    {
        "allocation": ("global",), "budget": ("nominal",), "count": ("weights",), "min_per_layer": (0,),
        "min_per_output": (0,), "narrow": (0,), "rounding": ("exact",), "schedule": SCHEDULES[:2],
        "structure": ("weights",),
    }
)  # fmt: skip
# What has to be plain beside an argument that is not.
_NEEDS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "structure": ("allocation", "budget", "min_per_layer", "min_per_output"),
        "narrow": ("allocation", "structure"),
        "rounding": ("allocation", "count", "schedule", "structure"),
        "min_per_output": ("budget",),
        "count": ("allocation",),
        "budget": ("allocation",),
    }
)
_SEARCHES = ("budget", "count", "min_per_layer", "min_per_output", "narrow", "structure")


def searches(method: str | CustomMethod) -> bool:
    """Whether a method searches for its mask, and can go on from a checkpoint."""
    return getattr(scorers.resolve(method), "trains", False) is True


def check_together(method: str | CustomMethod | None, given: Mapping[str, Any]) -> None:
    """Refuse arguments of a prune that do not go together, or not with the method; None: a run's own, which scores."""
    check_name("budget", given["budget"], BUDGETS)
    check_name("rounding", given["rounding"], ("exact", "released"))
    for name in ("min_per_layer", "min_per_output", "narrow"):
        check_integer(name, given[name], 0)
    released = None if method is None else getattr(scorers.resolve(method), "rounding", None)
    if given["rounding"] != "exact" and released is None:
        name = given["method"] if method is None else name_of(method)
        raise InvalidInput(f"rounding is 'released' with method {name!r}, which has no such rounding; allowed: exact")
    if method is not None and searches(method):
        if given["rounds"] not in (None, 1):
            rounds = given["rounds"]
            raise InvalidInput(f"{name_of(method)} searches for the mask in one round, not {rounds}; leave rounds= out")
        _check_plain(f"method {name_of(method)!r}, which searches for so many of the best weights,", _SEARCHES, given)
    for name, others in _NEEDS.items():
        if given[name] not in _PLAIN[name]:
            _check_plain(f"{name}={given[name]!r}", others, given)
    if given["structure"] not in ("weights", "channels"):  # blocks, which are counted
        _check_plain(f"structure={given['structure']!r}", ("count",), given)


def _check_plain(what: str, names: Sequence[str], given: Mapping[str, Any]) -> None:
    for name in names:
        if given[name] not in _PLAIN[name]:
            allowed = " or ".join(map(repr, _PLAIN[name]))
            own = f"a {type(given[name]).__name__}" if isinstance(given[name], Mapping) else repr(given[name])
            raise InvalidInput(f"{what} needs {name}={allowed}, not {own}")


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
