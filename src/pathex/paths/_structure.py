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
        *spellings("to", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda", "type", "detach"),
        *spellings("requires_grad_", "positive", "__pos__", "atleast_1d", "atleast_2d", "atleast_3d", "nansum"),
        *(getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "data", "real")),
    ]
)


def _move(reading: Record | Replay, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


for _func in MOVES:
    RECORD[_func] = _move
    REPLAY[_func] = _move


@RECORD.add("to", "type_as", "float", "double", "half", "bfloat16", "type")
@REPLAY.add("to", "type_as", "float", "double", "half", "bfloat16", "type")
def _cast(reading: Record | Replay, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Goes to another device but stays in the precision of the reading."""
    result = func(input, *args, **kwargs)
    if not isinstance(result, Tensor) or not result.is_floating_point() or result.dtype == input.dtype:
        return result
    return input.clone().to(result.device)


@RECORD.add("detach", "data")
@REPLAY.add("detach", "data")
def _cut(reading: Record | Replay, func: Callable[..., Any], input: Tensor) -> Tensor:
    """The path goes on where the gradient of the network ends."""
    return input.view_as(input)


for _table in (RECORD, REPLAY):
    _table[Tensor.data.__get__] = _cut  # type: ignore[attr-defined]


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
    if not reading.carries(target):
        reading.claim(target, func)
    func(target, index, value)


@REPLAY.add("__setitem__")
def _set_item_linear(reading: Replay, func: Callable[..., Any], target: Tensor, index: Any, value: Any) -> None:
    if not reading.carries(target):
        reading.claim(target, func).zero_()
    func(target, index, value if reading.carries(value) else 0.0)


_DROPOUTS = (
    *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "alpha_dropout_"),
    *("feature_dropout", "feature_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"),
)


@RECORD.add(*_DROPOUTS)
@REPLAY.add(*_DROPOUTS)
def _drop(reading: Record | Replay, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return input
