"""Every error and warning that pathex raises on purpose.

Each message names the culprit and, where there is a choice, the allowed values.
"""

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "FolderInUse",
    "InvalidInput",
    "LayerCollapse",
    "MaskMismatch",
    "PathexError",
    "PathexWarning",
    "UnknownName",
    "UnsupportedOperation",
    "check_integer",
    "reason",
]


class PathexError(Exception):
    """Base of every error that pathex raises on purpose."""


class InvalidInput(PathexError, ValueError):
    """An argument, a file or a data set that cannot be used."""


class FolderInUse(InvalidInput):
    """The folder of a run that another process works in."""


class UnsupportedOperation(PathexError, NotImplementedError):
    """A network does something that the requested reading of paths has no rule for."""


class MaskMismatch(InvalidInput):
    """A mask that does not fit the model, or a mask file that cannot be read."""


class PathexWarning(UserWarning):
    """Base of the warnings of pathex."""


class LayerCollapse(PathexError, PathexWarning):
    """A layer lost every weight. A warning by default, an error with ``strict=True``."""


class UnknownName(InvalidInput):
    """A name that is not known; the message lists the known ones.

    Args:
        kind: What the name should have named, for instance ``"method"``.
        name: The unknown name.
        allowed: All known names.
    """

    def __init__(self, kind: str, name: object, allowed: Iterable[str]) -> None:
        names = sorted(allowed)
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}")


def check_integer(what: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raise :class:`InvalidInput` unless ``value`` is an integer (no bool) from ``least`` to ``most``."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value and (most is None or value <= most):
        return
    if most is not None:
        allowed = f"an integer in {least}..{most}"
    else:
        allowed = "a positive integer" if least == 1 else f"an integer of at least {least}"
    raise InvalidInput(f"{what} must be {allowed}, got {value!r}")


def reason(error: BaseException) -> str:
    """Kind and text of somebody else's error, in one line of at most 200 characters of text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
