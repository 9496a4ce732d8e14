"""Every error and warning that pathex raises on purpose.

Each message names the culprit and, where there is a choice, the allowed values.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "FolderInUse",
    "InvalidInput",
    "LayerCollapse",
    "MaskMismatch",
    "PathexError",
    "PathexWarning",
    "UnknownName",
    "UnsupportedOperation",
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
