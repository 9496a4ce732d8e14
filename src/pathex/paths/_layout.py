"""In which layout of memory a network is read."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pathex.errors import PathexError
from pathex.layout import is_narrow
from pathex.paths._network import run, tensors_of, untouched
from pathex.paths._reading import spellings
from pathex.paths.observing import Observe
from pathex.paths.passes import record, replay

__all__ = ["layout_of"]

_CONVOLUTION = torch.ops.aten.convolution.default
_STRIDED = frozenset(spellings("as_strided", "as_strided_"))


class _Convolutions(TorchDispatchMode):
    """Looks at the convolutions of a network however they are called, inside scripted modules too.

    Attributes:
        number: How many there are.
        narrow: Whether one must not run in channels last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number, self.narrow = 0, False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is _CONVOLUTION and result.dim() == 4:
            self.number += 1
            weight, stride, transposed, groups = args[1], args[3], args[6], args[8]
            # The weights of a transposed convolution have the gradient of a convolution of its output.
            channels = (result if transposed else args[0]).shape[1]
            self.narrow |= is_narrow(channels, weight.shape[2:], stride, groups)
        return result


class _Strides(Observe):
    """The plain forward pass; sees whether the network itself counts on strides, which belong to a layout."""

    counted_on: bool = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counted_on |= func in _STRIDED
        return super().__torch_function__(func, types, args, kwargs)


def layout_of(model: nn.Module, x: Tensor, *, output: str | int | None = None) -> torch.memory_format:
    """The layout of images in which a network is read fastest.

    Args:
        model: The network; left as it was.
        x: Images ``(N, ...)`` in the precision of scoring; the first two are tried.
        output: Which of several outputs counts.

    Returns:
        Channels last for convolutional networks in float32 on the CPU that run in it; others as they are, also those
        that raise: they do so again where somebody hears it. On the CPU convolutions of few channels are then up to
        three times faster, above all backwards.
    """
    if x.dim() != 4 or x.dtype != torch.float32 or x.device.type != "cpu":
        return torch.contiguous_format
    few = x[:2].contiguous(memory_format=torch.channels_last)
    try:
        with untouched(model), torch.no_grad():
            tensors = tensors_of(model, None, x.dtype)
            reading, convolutions = _Strides(model, tensors), _Convolutions()
            with convolutions, reading:
                run(model, tensors, reading.carry(few.clone()), output)
        if reading.counted_on or convolutions.narrow or not convolutions.number:
            return torch.contiguous_format
    except Exception:  # a view that this layout does not have, or whatever a network says to it
        return torch.contiguous_format
    try:
        recording = record(model, few, output=output)
        with torch.no_grad():
            replay(model, few, recording, output=output)
    except PathexError:  # what cannot be read as paths; the network itself ran
        return torch.channels_last
    except Exception:
        return torch.contiguous_format
    return torch.channels_last
