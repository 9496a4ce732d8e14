"""Every error and warning that pathex raises on purpose.

Each message names the culprit and, where there is a choice, the allowed values.
"""

import difflib
import numbers
import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

__all__ = [
    "TRUSTED",
    "Allowed",
    "FolderInUse",
    "InvalidInput",
    "LayerCollapse",
    "MaskMismatch",
    "PathexError",
    "PathexWarning",
    "UnknownName",
    "UnsupportedOperation",
    "check_integer",
    "check_name",
    "check_names",
    "import_callable",
    "listed",
    "naming",
    "reason",
    "refusing",
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
        close = difflib.get_close_matches(str(name), names, n=1) or [n for n in names if n.lower() == str(name).lower()]
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}")


@dataclass(frozen=True, repr=False)
class Allowed:
    """The values that an option or a setting may have, in an ``Annotated``: ``text`` says which, ``holds`` tells."""

    text: str
    holds: Callable[[Any], bool]

    def __repr__(self) -> str:
        return self.text


def check_integer(what: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """The value, an integer (no bool) from ``least`` to ``most``; `InvalidInput` for others."""
    number = int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None
    if number is not None and least <= number and (most is None or number <= most):
        return number
    if most is not None:
        allowed = f"an integer in {least}..{most}"
    else:
        allowed = "a positive integer" if least == 1 else f"an integer of at least {least}"
    raise InvalidInput(f"{what} must be {allowed}, got {value!r}")


def check_name(kind: str, name: Any, allowed: Collection[str]) -> None:
    """Refuse a name that is not among the allowed ones (`UnknownName`)."""
    if name not in allowed:
        raise UnknownName(kind, name, allowed)


def check_names(kind: str, names: Iterable[Any], allowed: Collection[str]) -> None:
    """Refuse names of which one is not among the allowed ones (`UnknownName`)."""
    for name in names:
        check_name(kind, name, allowed)


@contextmanager
def refusing(message: str, *kinds: type[Exception], raising: type[PathexError] = InvalidInput) -> Iterator[None]:
    """Errors of some kinds, or of any, become one of ours: the message with their `reason` for its last ``{}``."""
    refused = kinds or (Exception,)
    try:
        yield
    except refused as error:
        before, _, after = message.rpartition("{}")
        raise raising(f"{before}{reason(error)}{after}") from error


@contextmanager
def naming(path: object) -> Iterator[None]:
    """An error of the system that names no file, such as that of a write, names this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def reason(error: BaseException) -> str:
    """Somebody else's error in one line of at most 200 characters; of the system's, and of own ones, the text alone."""
    if isinstance(error, PathexError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def listed(names: Sequence[str]) -> str:
    """The first four names and how many more there are, for a message."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


TRUSTED: ContextVar[Callable[[str], bool] | None] = ContextVar("trusted", default=None)
"""Which names of code a command may import; None outside commands, where the caller gives them."""


def import_callable(kind: str, name: str, *, given: bool = True) -> Callable[..., Any]:
    """What ``package.module:name`` (it may have dots) of the caller or a file points to; ``kind`` is for messages."""
    module, _, attribute = name.partition(":")
    if not module:
        raise InvalidInput(f"{kind} {name!r} is not of the form package.module:name")
    trusted = TRUSTED.get()
    if not (given if trusted is None else trusted(name)):
        trusted_by = "--trust-code imports it, in Python model="
        raise InvalidInput(f"{kind} {name!r} comes from a file and is code to be run; if you trust it, {trusted_by}")
    try:
        found: Any = pkgutil.resolve_name(name)
    except ValueError as error:
        raise InvalidInput(f"{kind} {name!r} is not of the form package.module:name") from error
    except AttributeError:
        found = None
    except Exception as error:  # whatever the module raises as it is imported
        hint = "; is its folder on PYTHONPATH, or the one you work in?" if isinstance(error, ImportError) else ""
        raise InvalidInput(f"{kind} {name!r}: cannot import {module!r}: {error}{hint}") from error
    if not callable(found):
        raise InvalidInput(f"{kind} {name!r}: {module!r} has no callable {attribute!r}")
    return found
