"""Weights that a network computes from a parameter: standardised, divided by their norm, scaled, moved.

A path is weighed with the effective weight w, and the score of the parameter entry theta_j in its place is
``w_j^2 dR / d(w_j^2)``. Where w is theta, moved or multiplied by fixed factors, the gradient says just that. Anything
else (a standardisation) is not differentiated: its output hardly depends on the size of theta, so that the scores of a
filter would cancel. There w is read as ``theta (w / theta)`` with the ratio fixed, and as 0 where theta is 0 (pruned).

The weights that are scored are those that need a gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathex.paths._products import PRODUCTS, QUOTIENTS
from pathex.paths._reading import is_in_place, spellings, tensors_in
from pathex.paths._readings import Replay
from pathex.paths._structure import MOVES

__all__ = ["EffectiveReplay", "keeps_place"]

# Moves that keep the entries in their order, read row after row.
_IN_ORDER = frozenset(
    [
        *spellings("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"),
        *spellings("squeeze_", "unsqueeze_", "contiguous", "clone", "to", "type_as", "float", "double", "half", "cpu"),
        *spellings("bfloat16", "cuda", "type", "detach", "requires_grad_", "positive", "__pos__", "atleast_1d"),
        *spellings("atleast_2d", "atleast_3d", "expand", "expand_as", "broadcast_to"),
        Tensor.data.__get__,  # type: ignore[attr-defined]
        Tensor.real.__get__,  # type: ignore[attr-defined]
    ]
)
_JOINS = ("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack", "pad", "copy_")
# What moves entries without mixing them.
_MOVES = MOVES - frozenset(spellings("sum", "nansum", "cumsum", "fold")) | frozenset(spellings(*_JOINS, "__setitem__"))
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
_PLACED = frozenset(
    [
        *spellings(*_ELEMENTWISE, *(f"{name}_" for name in _ELEMENTWISE), "rsub", "softplus", "gelu", "silu", "elu"),
        *spellings(*(f"__{name}__" for name in _OPERATORS), *(f"__i{name}__" for name in _OPERATORS)),
        *spellings("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize", "_weight_norm"),
        *spellings("dropout", "hardsigmoid", "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"),
        *spellings("log_softmax", "softsign", "atan", "sin", "cos", "log1p", "expm1", "logsigmoid"),
    ]
)


@dataclass(frozen=True)
class _Origin:
    """The scored weight that a constant was computed from.

    Attributes:
        leaf: The weight; None if there are several.
        placed: Whether the constant has one entry for each of the weight, in its order.
        linear: Whether the weight was only moved and multiplied by fixed factors, so that its gradient is right.
    """

    leaf: Tensor | None
    placed: bool
    linear: bool


def keeps_place(func: Callable[..., Any], source: Tensor, result: Tensor) -> bool:
    """Whether the entries of a function's result belong to the entries of an operand, one by one and in their order.

    Args:
        func: The torch function.
        source: One of its operands.
        result: Its result.

    Returns:
        True if they do. Of a weight and its statistics, the operand in the shape of the result is the weight.
    """
    if func in _IN_ORDER:
        return source.numel() == result.numel()
    return func in _PLACED and source.shape == result.shape


class EffectiveReplay(Replay):
    """A replay that knows which constants were computed from a scored weight."""

    def on_constant(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that no path enters: computed as it stands.

        Args:
            func: The torch function.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            The result, marked as constant and with the weight that it comes from.
        """
        result = super().on_constant(func, args, kwargs)
        # What is moved comes first; another operand of a move tells the form.
        operands = tensors_in(args[:1] if func in MOVES else (args, kwargs))
        traced = [(tensor, self._origin(tensor)) for tensor in operands]
        known = [(tensor, origin) for tensor, origin in traced if origin is not None]
        if known:
            targets = list(tensors_in([result]))
            if is_in_place(func):
                targets = [args[0]] if args[0]._base is None else [args[0], args[0]._base]
            for target in targets:
                if self.name_of(target) is None:
                    target._pathex_origin = self._combined(func, args, known, target)  # type: ignore[attr-defined]
        return result

    def _origin(self, tensor: Tensor) -> _Origin | None:
        if self.name_of(tensor) is not None and (tensor.requires_grad or getattr(tensor, "_pathex_scored", False)):
            return _Origin(tensor, placed=True, linear=True)
        return getattr(tensor, "_pathex_origin", None)

    def _combined(
        self, func: Callable[..., Any], args: tuple[Any, ...], known: Sequence[tuple[Tensor, _Origin]], target: Tensor
    ) -> _Origin:
        leaf = known[0][1].leaf
        if any(origin.leaf is not leaf for _, origin in known):
            leaf = None
        scaled = func in _FACTORS and len(known) == 1 and (func not in _QUOTIENTS or known[0][0] is args[0])
        linear = (func in _MOVES or scaled) and all(origin.linear for _, origin in known)
        if self._grad_enabled and not target.requires_grad:
            linear = False  # the network cut its gradient
        placed = leaf is not None and any(origin.placed and keeps_place(func, one, target) for one, origin in known)
        return _Origin(leaf, placed, linear)

    def coefficient(self, value: Any) -> Any:
        """How a fixed linear coefficient (a weight, a number, a filter) enters this reading.

        Args:
            value: A number or a tensor.

        Returns:
            The number or tensor to multiply with.

        Raises:
            UnsupportedOperation: If it was computed from scored weights, and no entry of them can be told to belong to
                an entry of it.
        """
        return super().coefficient(self._effective(value))

    def _effective(self, value: Any) -> Any:
        origin: _Origin | None = getattr(value, "_pathex_origin", None)
        if origin is None or self.coefficients == "plain":
            return value
        if origin.linear:
            # Connections are 0 or 1, whatever the fixed factors are.
            return _times(value, 1 / value) if self.coefficients == "connected" else value
        if origin.leaf is None or not origin.placed:
            why = "it is computed from prunable weights in a way that does not keep their entries in place; leave them "
            why += "dense with ignore="
            raise self.unsupported("a weight", why)
        leaf = origin.leaf.reshape(value.shape)
        return leaf if self.coefficients in ("ones", "connected") else _times(leaf, value / leaf)


def _times(weight: Tensor, ratio: Tensor) -> Tensor:
    """The weight times a fixed ratio, which is infinite or undefined at zeros: they stay zero."""
    return weight * torch.nan_to_num(ratio.detach(), nan=0.0, posinf=0.0, neginf=0.0)
