"""What a single forward pass tells about a network: which parameters multiply, which weights act, and how big it is.

Many networks begin with a multiplicative parameter that is zero or tiny (last gamma of a residual block, LayerScale) or
with a head of zeros; every score behind it would vanish. `read_scales` reads those as one.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.paths._affine import WEIGHTED
from pathex.paths._effective import keeps_place
from pathex.paths._network import compute_dtype, run, tensors_of, untouched
from pathex.paths._products import MATRIX_PRODUCTS, PRODUCTS, QUOTIENTS
from pathex.paths._reading import spellings, tensors_in
from pathex.paths._smooth import ACTIVATIONS, FUNCTIONS
from pathex.paths._structure import MOVES
from pathex.paths.observing import Observe
from pathex.sharded import in_one_piece

__all__ = ["Footprint", "Survey", "read_scales", "survey"]

_TINY = 0.01
_STAYS_ZERO = frozenset(spellings("tanh", "tanh_"))
# Where functions take factors, by place and keyword. A divisor that starts small makes nothing vanish.
_FACTORS: Mapping[Callable[..., Any], Sequence[tuple[int, str]]] = {
    **dict.fromkeys(spellings(*PRODUCTS), ((0, "input"), (1, "other"))),
    **dict.fromkeys(spellings(*QUOTIENTS), ((0, "input"),)),
    **dict.fromkeys(spellings("addcmul", "addcmul_"), ((1, "tensor1"), (2, "tensor2"))),
    **dict.fromkeys(spellings("lerp", "lerp_", "layer_norm", "group_norm", "rms_norm"), ((2, "weight"),)),
    **dict.fromkeys(spellings("_weight_norm"), ((1, "g"),)),
    F.batch_norm: ((3, "weight"),),
    F.instance_norm: ((3, "weight"),),
    torch.instance_norm: ((1, "weight"),),
}
# Where functions take weights.
_WEIGHTS: Mapping[Callable[..., Any], Sequence[tuple[int, str]]] = {
    **dict.fromkeys(spellings(*WEIGHTED), ((1, "weight"),)),
    **dict.fromkeys(spellings("matmul", "__matmul__", "mm", "bmm"), ((0, "input"), (1, "other"), (1, "mat2"))),
    **dict.fromkeys(spellings("addmm", "baddbmm"), ((1, "mat1"), (2, "mat2"), (1, "batch1"), (2, "batch2"))),
    torch.einsum: ((1, ""), (2, "")),
    F.multi_head_attention_forward: ((-1, "in_proj_weight"), (-1, "out_proj_weight")),
}
# What a sum over paths with coefficients 0, 1 or a slope does not describe, whatever its arguments.
_BEYOND = frozenset(
    spellings(
        *(set(ACTIVATIONS) | set(FUNCTIONS)) - {"abs", "abs_", "absolute", "__abs__", "hardshrink", "softshrink"},
        *("softmax", "log_softmax", "softmin", "scaled_dot_product_attention", "multi_head_attention_forward", "glu"),
        *("layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize", "norm"),
        *("vector_norm", "var", "std", "var_mean", "std_mean"),
    )
)
# What it does not describe where more than one argument depends on the input.
_PRODUCTS = frozenset(
    spellings(
        *PRODUCTS, *QUOTIENTS, *MATRIX_PRODUCTS, *WEIGHTED, "einsum", "addmm", "addmv", "baddbmm", "addcmul", "addcmul_"
    )
)


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
        factors: Names of the parameters that multiply what comes from the input: weights of normalisations, layer
            scales, gains of standardised weights.
        weights: Names of the weights of linear, convolution and matrix products, in the order of their first call.
        heads: Those of them whose result goes to the output without meeting another one.
        footprint: Size of the activations of one image.
        beyond: Names of the functions that make the network more than piecewise linear.
    """

    factors: frozenset[str]
    weights: tuple[str, ...]
    heads: tuple[str, ...]
    footprint: Footprint
    beyond: tuple[str, ...] = ()


def _taken(places: Sequence[tuple[int, str]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments at the given places."""
    return [args[i] if 0 <= i < len(args) else kwargs.get(keyword) for i, keyword in places]


@dataclass(eq=False)
class _Surveyor(Observe):
    factors: set[str] = field(default_factory=set)
    weights: dict[str, None] = field(default_factory=dict)
    footprint: Footprint = field(default_factory=Footprint)
    beyond: dict[str, None] = field(default_factory=dict)

    # -- constants: what they were computed from -----------------------------------------------------------------------

    def _weight(self, value: Any) -> str | None:
        """Name of the parameter whose entries, changed in place or moved, are those of ``value``."""
        return getattr(value, "_pathex_weight", None) or self.name_of(value)

    def _product(self, value: Any) -> frozenset[str]:
        """Names of the parameters that ``value`` is a product of."""
        own = self.name_of(value)
        found: frozenset[str] = getattr(value, "_pathex_product", frozenset())
        return found if own is None else found | {own}

    def on_constant(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().on_constant(func, args, kwargs)
        passes = func in MOVES or func in _STAYS_ZERO
        operands = list(args[:1]) if passes else _taken(_FACTORS.get(func, ()), args, kwargs)
        product = frozenset[str]().union(*map(self._product, operands))
        for tensor in tensors_in([result]):
            sources = (
                args[:1] if func in MOVES else [s for s in tensors_in((args, kwargs)) if keeps_place(func, s, tensor)]
            )
            weight = next(filter(None, map(self._weight, sources)), None)
            if self.name_of(tensor) is not None:
                continue
            if product:
                tensor._pathex_product = product  # type: ignore[attr-defined]
            if weight is not None:
                tensor._pathex_weight = weight  # type: ignore[attr-defined]
        return result

    # -- what comes from the input: which weights it met last ----------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        carried = [tensor for tensor in tensors_in((args, kwargs or {})) if self.carries(tensor)]
        met = self._note(func, args, kwargs or {}) if carried else []
        if carried and (func in _BEYOND or (func in _PRODUCTS and len(carried) > 1)):
            self.beyond.setdefault(func.__name__.strip("_"))
        before = frozenset[str]().union(*(getattr(tensor, "_pathex_met", ()) for tensor in carried))
        result = super().__torch_function__(func, types, args, kwargs)
        for tensor in tensors_in([result]):
            if carried:
                tensor._pathex_met = frozenset(met) or before  # type: ignore[attr-defined]
            if func not in MOVES:
                self.footprint.total += tensor.numel()
                self.footprint.largest = max(self.footprint.largest, tensor.numel())
        return result

    def _note(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        """Note the factors and the weights of a call that the input enters; returns the weights."""
        factors = _taken(_FACTORS.get(func, ()), args, kwargs)
        if len(factors) == 1 or any(map(self.carries, factors)):
            self.factors.update(*(self._product(value) for value in factors if not self.carries(value)))
        met: list[str] = []
        for value in _taken(_WEIGHTS.get(func, ()), args, kwargs):
            if not self.carries(value):
                name = self._weight(value)
                self.factors |= self._product(value) - {name}
                met += [] if name is None else [name]
        self.weights.update(dict.fromkeys(met))
        return met


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
            result = run(model, tensors, reading.carry(start), output)
    size = Footprint(-(-reading.footprint.total // len(few)), -(-reading.footprint.largest // len(few)))
    weights, met = tuple(reading.weights), getattr(result, "_pathex_met", ())
    heads = tuple(name for name in weights if name in met) or weights[-1:]
    return Survey(frozenset(reading.factors), weights, heads, size, tuple(reading.beyond))


def read_scales(model: nn.Module, survey: Survey, prunable: Collection[str]) -> dict[str, Tensor]:
    """The parameters that are read as one because they start at zero or almost there.

    These are the multiplicative parameters that are not prunable and whose entries are all equal and below 0.01 in
    absolute value, and the heads that are prunable and all zero (their entries are then of unit square).

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
    names += [name for name in survey.heads if name in prunable and not in_one_piece(parameters[name]).any()]
    dtype = compute_dtype(model)
    return {name: torch.ones(parameters[name].shape, dtype=dtype, device=parameters[name].device) for name in names}


def _flat_and_tiny(parameter: Tensor) -> bool:
    whole = in_one_piece(parameter.detach())
    first = whole.flatten()[:1]
    return bool((whole == first).all()) and bool(first.abs() < _TINY)
