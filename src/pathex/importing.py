"""What users name by ``package.module:name``: factories of models, scorers of their own."""

import importlib
from collections.abc import Callable
from typing import Any

from pathex.errors import InvalidInput

__all__ = ["import_callable"]


def import_callable(kind: str, name: str) -> Callable[..., Any]:
    """Import what a name points to.

    Args:
        kind: What is looked for, for error messages: ``model``, ``method``.
        name: ``package.module:name``, where the second part may have dots.

    Returns:
        The callable.

    Raises:
        InvalidInput: If the module cannot be imported or has no such callable.
    """
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
