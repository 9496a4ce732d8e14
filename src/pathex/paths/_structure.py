"""Operations that move numbers or add them up without weighing them: linear with coefficient 1."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.paths._reading import spellings
from pathex.paths._readings import RECORD, REPLAY, Record, Replay

__all__ = ["MOVES"]

MOVES: frozenset[Callable[..., Any]] = frozenset(
    [
        *spellings("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"),
        *spellings("squeeze_", "unsqueeze_", "transpose", "transpose_", "swapaxes", "swapdims", "permute", "movedim"),
        *spellings("moveaxis", "t", "adjoint", "contiguous", "clone", "expand", "expand_as", "repeat", "tile"),
        *spellings("broadcast_to", "repeat_interleave", "chunk", "split", "split_with_sizes", "tensor_split", "unbind"),
        *spellings("hsplit", "vsplit", "dsplit", "narrow", "select", "index_select", "__getitem__", "take_along_dim"),
        *spellings("gather", "roll", "flip", "fliplr", "flipud", "rot90", "unfold", "fold", "diagonal", "as_strided"),
        *spellings("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "sum", "cumsum"),
        *spellings("to", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda", "type", "detach", "identity"),
        *spellings("requires_grad_", "positive", "__pos__", "atleast_1d", "atleast_2d", "atleast_3d", "nansum"),
        *(getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "data", "real")),
    ]
)


def _move(reading: Record | Replay, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


for _func in MOVES:
    RECORD[_func] = _move
    REPLAY[_func] = _move


@RECORD.add("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack")
def _join(reading: Record, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


@REPLAY.add("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack")
def _join_linear(reading: Replay, func: Callable[..., Any], tensors: Any, *args: Any, **kwargs: Any) -> Any:
    """What does not come from the input (a class token, padding channels) is an additive constant: zero."""
    parts = [part if reading.carries(part) else torch.zeros_like(part) for part in tensors]
    return func(parts, *args, **kwargs)


@RECORD.add("pad", "constant_pad_nd")
def _pad(reading: Record, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


@REPLAY.add("pad", "constant_pad_nd")
def _pad_linear(
    reading: Replay,
    func: Callable[..., Any],
    input: Tensor,
    pad: Any,
    mode: str = "constant",
    value: float | None = None,
) -> Tensor:
    return F.pad(input, pad, mode if isinstance(mode, str) else "constant")


@RECORD.add("__setitem__")
def _set_item(reading: Record, func: Callable[..., Any], target: Tensor, index: Any, value: Any) -> None:
    _refuse_own(reading, func, target)
    func(target, index, value)
    reading.carry(target)


@REPLAY.add("__setitem__")
def _set_item_linear(reading: Replay, func: Callable[..., Any], target: Tensor, index: Any, value: Any) -> None:
    _refuse_own(reading, func, target)
    if not reading.carries(target):
        target.zero_()
    func(target, index, value if reading.carries(value) else 0.0)
    reading.carry(target)


def _refuse_own(reading: Record | Replay, func: Callable[..., Any], target: Tensor) -> None:
    if any(target is tensor for tensor in reading.tensors.values()):
        raise reading.unsupported("__setitem__", "it writes into a parameter or buffer")


_DROPOUTS = (
    *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "alpha_dropout_"),
    *("feature_dropout", "feature_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"),
)


@RECORD.add(*_DROPOUTS)
@REPLAY.add(*_DROPOUTS)
def _drop(reading: Record | Replay, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return input
