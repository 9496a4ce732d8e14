"""What users name by ``package.module:name``: factories of models, scorers of their own."""

import importlib
from collections.abc import Callable
from typing import Any

from pathex.errors import InvalidInput

__all__ = ["import_callable"]


def import_callable(kind: str, name: str) -> Callable[..., Any]:
    """What ``package.module:name`` points to (the name may have dots); ``kind`` is for error messages."""
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise InvalidInput(
            f"{kind} {name!r}: cannot import {module_name!r}: {error}; is its folder on PYTHONPATH?"
        ) from error
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{kind} {name!r} is not of the form package.module:name") from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InvalidInput(f"{kind} {name!r}: {module_name!r} has no callable {attribute!r}")
    return found
