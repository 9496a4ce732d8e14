"""Weights that a network computes from a parameter: standardised, divided by their norm, scaled, moved.

A path is weighed with the effective weight w, and the score of the parameter entry theta_j in its place is
``w_j^2 dR / d(w_j^2)``. Where w is theta, moved or multiplied by fixed factors, the gradient says just that. Anything else
(a standardisation) is not differentiated: its output hardly depends on the size of theta, so that the scores of a filter
would cancel. There w is read as ``theta (w / theta)`` with the ratio fixed, which is 0 where theta is 0 (pruned).

The weights that are scored are those that need a gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathex.paths._products import PRODUCTS, QUOTIENTS
from pathex.paths._reading import Reading, is_in_place, spellings, tensors_in
from pathex.paths._structure import MOVES

__all__ = ["IN_ORDER", "PLACED", "Origin", "effective", "trace"]

# Moves that keep the entries in their order, read row after row.
IN_ORDER = frozenset(
    [
        *spellings("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"),
        *spellings("squeeze_", "unsqueeze_", "contiguous", "clone", "to", "type_as", "float", "double", "half", "cpu"),
        *spellings("bfloat16", "cuda", "type", "detach", "requires_grad_", "positive", "__pos__", "atleast_1d"),
        *spellings("atleast_2d", "atleast_3d", "expand", "expand_as", "broadcast_to"),
        Tensor.data.__get__,  # type: ignore[attr-defined]
        Tensor.real.__get__,  # type: ignore[attr-defined]
    ]
)
_JOINS = frozenset(
    spellings("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack", "pad", "copy_")
)
_SUMS = frozenset(spellings("sum", "nansum", "cumsum", "fold"))
_FACTORS = frozenset(spellings(*PRODUCTS, *QUOTIENTS, "neg", "neg_", "negative", "negative_", "__neg__"))
_QUOTIENTS = frozenset(spellings(*QUOTIENTS))

_ELEMENTWISE = (
    *("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "pow", "square", "sqrt", "rsqrt"),
    *("abs", "absolute", "sign", "sgn", "exp", "log", "tanh", "sigmoid", "relu", "clamp", "clip", "clamp_min", "neg"),
    *("clamp_max", "round", "floor", "ceil", "trunc", "where", "masked_fill", "nan_to_num", "addcmul", "addcdiv"),
    *("lerp", "maximum", "minimum", "leaky_relu", "hardtanh", "erf", "reciprocal", "negative", "threshold", "softmax"),
)
_OPERATORS = ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "rdiv", "pow", "rpow", "neg", "abs")
# Functions whose result has for each entry of a weight one that belongs to it.
PLACED = frozenset(
    [
        *spellings(*_ELEMENTWISE, *(f"{name}_" for name in _ELEMENTWISE), "rsub", "softplus", "gelu", "silu", "elu"),
        *spellings(*(f"__{name}__" for name in _OPERATORS), *(f"__i{name}__" for name in _OPERATORS)),
        *spellings("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize", "_weight_norm"),
        *spellings("dropout", "hardsigmoid", "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"),
        *spellings("norm_except_dim", "log_softmax", "softsign", "atan", "sin", "cos", "log1p", "expm1", "logsigmoid"),
    ]
)


@dataclass(frozen=True)
class Origin:
    """The scored weight that a constant was computed from.

    Attributes:
        leaf: The weight; None if there are several.
        placed: Whether the constant has one entry for each of the weight, in its order.
        linear: Whether the weight was only moved and multiplied by fixed factors, so that its gradient is right.
    """

    leaf: Tensor | None
    placed: bool
    linear: bool


def _origin(reading: Reading, tensor: Tensor) -> Origin | None:
    if tensor.requires_grad and reading.owns(tensor):
        return Origin(tensor, placed=True, linear=True)
    found: Origin | None = getattr(tensor, "_pathex_origin", None)
    return found


def trace(
    reading: Reading, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Note on a constant which scored weight it was computed from.

    Args:
        reading: The reading.
        func: The torch function that was called.
        args: Its arguments, none of which carries paths.
        kwargs: Its keyword arguments.
        result: Its result.
    """
    operands = [(tensor, _origin(reading, tensor)) for tensor in tensors_in((args, kwargs))]
    traced = [(tensor, origin) for tensor, origin in operands if origin is not None]
    if not traced:
        return
    leaves = {id(origin.leaf): origin.leaf for _, origin in traced}
    leaf = next(iter(leaves.values())) if len(leaves) == 1 else None
    moved = func in MOVES and func not in _SUMS or func in _JOINS or getattr(func, "__name__", "") == "__setitem__"
    scaled = func in _FACTORS and len(traced) == 1 and (func not in _QUOTIENTS or traced[0][0] is args[0])
    linear = (moved or scaled) and all(origin.linear for _, origin in traced)
    targets = list(tensors_in([result]))
    if is_in_place(func):
        targets = [args[0], *([] if args[0]._base is None else [args[0]._base])]
    for tensor in targets:
        if reading.owns(tensor):
            continue
        kept = func in IN_ORDER or func in PLACED
        # Of a weight and its statistics, the operand in the shape of the result is the weight.
        placed = kept and any(
            origin.placed and origin.leaf is leaf and _same_places(func, source, tensor) for source, origin in traced
        )
        differentiable = tensor.requires_grad or not reading.with_gradient
        tensor._pathex_origin = Origin(leaf, placed and leaf is not None, linear and differentiable)  # type: ignore[attr-defined]


def _same_places(func: Callable[..., Any], source: Tensor, result: Tensor) -> bool:
    return source.numel() == result.numel() if func in IN_ORDER else source.shape == result.shape


def effective(reading: Reading, coefficients: str, value: Any) -> Any:
    """How a weight enters a reading that was computed from a scored one.

    Args:
        reading: The reading.
        coefficients: How coefficients enter it.
        value: A weight or another factor of paths.

    Returns:
        The weight as it is, or with the gradient of the entry in the same place; where weights are ones or masks, these.

    Raises:
        UnsupportedOperation: If no entry of a scored weight can be told to belong to an entry of this one.
    """
    origin: Origin | None = getattr(value, "_pathex_origin", None)
    if origin is None or coefficients == "plain":
        return value
    if origin.linear:
        return _where_finite(value, 1 / value) if coefficients == "connected" else value
    if origin.leaf is None or not origin.placed:
        why = "it is computed from prunable weights in a way that does not keep their entries in place"
        raise reading.unsupported("a weight", why)
    leaf = origin.leaf.reshape(value.shape)
    return leaf if coefficients in ("ones", "connected") else _where_finite(leaf, value / leaf)


def _where_finite(weight: Tensor, ratio: Tensor) -> Tensor:
    """The weight times a fixed ratio, which is infinite or undefined at zeros: they stay zero."""
    return weight * torch.nan_to_num(ratio.detach(), nan=0.0, posinf=0.0, neginf=0.0)
