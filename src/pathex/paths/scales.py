"""What a single forward pass tells about a network: which parameters multiply, which weights act, and how big it is.

Many networks begin with a multiplicative parameter that is zero or tiny (last gamma of a residual block, LayerScale) or
with a head of zeros; every score behind it would vanish. `read_scales` reads those as one.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.paths._affine import _PRODUCTS, _QUOTIENTS, WEIGHTED
from pathex.paths._network import compute_dtype, run, tensors_of, untouched
from pathex.paths._reading import spellings, tensors_in
from pathex.paths._structure import MOVES
from pathex.paths.observing import Observe

__all__ = ["Footprint", "Survey", "read_scales", "survey"]

_TINY = 0.01
_FACTORS = frozenset(spellings(*_PRODUCTS, *_QUOTIENTS))
_WEIGHTS = frozenset(spellings(*WEIGHTED))


@dataclass
class Footprint:
    """Elements of the activations of one image.

    Attributes:
        total: Of all results of operations that are not mere views.
        largest: Of the largest one.
    """

    total: int = 0
    largest: int = 0


@dataclass(frozen=True)
class Survey:
    """What one forward pass of one image shows.

    Attributes:
        factors: Names of the parameters that multiply what comes from the input (BatchNorm weights, layer scales).
        weights: Names of the weights of linear and convolution calls, in the order of their first call.
        footprint: Size of the activations of one image.
    """

    factors: frozenset[str]
    weights: tuple[str, ...]
    footprint: Footprint


@dataclass(eq=False)
class _Surveyor(Observe):
    factors: set[str] = field(default_factory=set)
    weights: dict[str, None] = field(default_factory=dict)
    footprint: Footprint = field(default_factory=Footprint)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._names = {id(tensor): name for name, tensor in self.tensors.items()}

    def _source(self, value: Any) -> str | None:
        return getattr(value, "_pathex_source", None) or self._names.get(id(value))

    def on_constant(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is F.batch_norm:  # of a weight: it is standardised, and the norm's own weight is its gain
            self._note(func, args, kwargs)
        result = super().on_constant(func, args, kwargs)
        scaled = func in _FACTORS and len(list(tensors_in((args, kwargs)))) == 1
        source = self._source(args[0]) if args and (func in MOVES or scaled) else None
        if source is not None:
            for tensor in tensors_in([result]):
                tensor._pathex_source = source  # type: ignore[attr-defined]
        return result

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _FACTORS or func is F.batch_norm or func in _WEIGHTS:
            values = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
            if any(self.carries(value) for value in values):
                self._note(func, args, kwargs or {})
        result = super().__torch_function__(func, types, args, kwargs)
        if func not in MOVES:
            for tensor in tensors_in([result]):
                self.footprint.total += tensor.numel()
                self.footprint.largest = max(self.footprint.largest, tensor.numel())
        return result

    def _note(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        position, keyword = (3, "weight") if func is F.batch_norm else (1, "weight" if func in _WEIGHTS else "other")
        values = [args[position] if len(args) > position else kwargs.get(keyword)]
        if func in _FACTORS:
            values.append(args[0] if args else kwargs.get("input"))
        for name in filter(None, map(self._source, values)):
            if func in _WEIGHTS:
                self.weights.setdefault(name)
            else:
                self.factors.add(name)


def survey(model: nn.Module, x: Tensor, *, output: str | int | None = None) -> Survey:
    """Run one image through the network and note its multiplicative parameters, its weights and its size.

    Args:
        model: The network; left as it was.
        x: Images ``(N, ...)``; the first two are used, so that BatchNorm has something to measure.
        output: Which of several outputs counts.

    Returns:
        The survey, with the footprint of one image.
    """
    dtype, few = compute_dtype(model), x[:2]
    with untouched(model), torch.no_grad():
        tensors = tensors_of(model, None, dtype)
        reading = _Surveyor(model, tensors)
        start = few.to(dtype, copy=True)
        with reading:
            run(model, tensors, reading.carry(start), output)
    size = Footprint(-(-reading.footprint.total // len(few)), -(-reading.footprint.largest // len(few)))
    return Survey(frozenset(reading.factors), tuple(reading.weights), size)


def read_scales(model: nn.Module, survey: Survey, prunable: Collection[str]) -> dict[str, Tensor]:
    """The parameters that are read as one because they start at zero or almost there.

    These are the multiplicative parameters that are not prunable and whose entries are all equal and below 0.01 in
    absolute value, and the weight of the last linear or convolution call if it is prunable and all zero (a zero head
    then has entries of unit square).

    Args:
        model: The network.
        survey: Its survey.
        prunable: Names of the prunable weights.

    Returns:
        Name to a tensor of ones in the parameter's shape; empty if the network has no such parameter.
    """
    parameters = dict(model.named_parameters())
    names = [
        name
        for name in sorted(survey.factors)
        if name in parameters and name not in prunable and _flat_and_tiny(parameters[name])
    ]
    head = survey.weights[-1] if survey.weights else ""
    if head in prunable and not parameters[head].any():
        names.append(head)
    dtype = compute_dtype(model)
    return {name: torch.ones_like(parameters[name], dtype=dtype, requires_grad=False) for name in names}


def _flat_and_tiny(parameter: Tensor) -> bool:
    first = parameter.detach().flatten()[:1]
    return bool((parameter == first).all()) and bool(first.abs() < _TINY)
