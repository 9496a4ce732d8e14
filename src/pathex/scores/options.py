"""What the options of a method may be, and the check of all of them against their annotations."""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Annotated, Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from pathex.errors import Allowed, InvalidInput, UnknownName


def _is_integer(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


Initialiser = Callable[[str, Tensor, torch.Generator], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Scales = Literal["auto", "stored"]
Redraw = Annotated[
    bool | Initialiser,
    Allowed(
        "True, False or (name, tensor, generator) -> tensor", lambda value: isinstance(value, bool) or callable(value)
    ),
]
LOSSES = ("cross-entropy", "bce", "mse")


def losses(*more: str) -> Allowed:
    """A loss by name, or any function."""
    names = (*LOSSES, *more)
    return Allowed(
        f"{', '.join(names)}, or a function (outputs, labels) -> mean loss",
        lambda value: callable(value) or (isinstance(value, str) and value in names),
    )


LossOrName = Annotated[Loss | Literal["cross-entropy", "bce", "mse"], losses()]
Count = Annotated[int, Allowed("an integer of at least 1", lambda value: _is_integer(value, 1))]
CountOrNone = Annotated[
    int | None, Allowed("an integer of at least 1, or None", lambda value: value is None or _is_integer(value, 1))
]
Natural = Annotated[int, Allowed("an integer of at least 0", lambda value: _is_integer(value, 0))]
NaturalOrNone = Annotated[
    int | None, Allowed("None or an integer of at least 0", lambda value: value is None or _is_integer(value, 0))
]
Share = Annotated[float, Allowed("a number in [0, 1]", lambda value: is_number(value) and 0 <= value <= 1)]
Positive = Annotated[float, Allowed("a positive number", lambda value: is_number(value) and value > 0)]


def check_options(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Refuse values that are not among those of their annotations: a ``Literal``, ``bool``, or an `Allowed`."""
    for name, value in values.items():
        hint = hints[name]
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise UnknownName(name, value, get_args(hint))
        if hint is bool and not isinstance(value, bool):
            raise InvalidInput(f"{name} must be True or False, not {value!r}")
        for allowed in getattr(hint, "__metadata__", ()):
            if isinstance(allowed, Allowed) and not allowed.holds(value):
                raise InvalidInput(f"{name} must be {allowed.text}, not {value!r}")
