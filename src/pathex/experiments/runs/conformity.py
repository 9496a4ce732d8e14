"""Whether values are of the types of settings."""

import json
import math
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pathex.errors import InvalidInput, UnknownName
from pathex.experiments.runs.config import allowed_values

_FILLED = ("name", "num_classes", "in_channels", "weights")


def check_types(settings: Any) -> None:
    """Refuse a value of a dataclass that is not of its type."""
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if conforms(value, hint):
            if name.endswith("_options"):
                _check_options(name, value)
            continue
        if get_origin(hint) is Literal:
            raise UnknownName(name, value, get_args(hint))
        in_percent = name == "sparsity" and conforms(value, float) and value > 1
        more = f" (did you mean {value / 100:g}?)" if in_percent else ""
        raise InvalidInput(f"{name} is {value!r}; allowed: {allowed_values(hint)}{more}")


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    for option in options:
        if not isinstance(option, str) or option in _FILLED[: None if name == "model_options" else 1]:
            raise InvalidInput(
                f"{name} has {option!r}; allowed: names of options, but for those that pathex sets itself"
            )
    try:
        json.dumps(options)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"{name} has a value that a file cannot hold ({error}); allowed: text, numbers, lists"
        ) from None


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value is one of a type, as the types of settings go."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return conforms(value, arguments[0]) and bool(arguments[1].holds(value))
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(conforms(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple | list) and all(conforms(entry, arguments[0]) for entry in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(conforms(entry, arguments[1]) for entry in value.values())
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    return hint is Any or isinstance(value, hint)
