"""The layout of images in memory: which networks may run in channels_last. Imports torch only."""

from collections.abc import Sequence

from torch import nn

__all__ = ["breaks_channels_last", "is_narrow"]

_NARROW = 16  # oneDNN 3.12 writes beyond its memory where there are fewer inputs


def is_narrow(channels: int, kernel: Sequence[int], stride: Sequence[int], groups: int = 1) -> bool:
    """Whether the backward pass of a convolution in channels_last writes beyond its memory on the CPU (torch 2.14).

    https://github.com/uxlfoundation/oneDNN/issues/6035

    Args:
        channels: Channels of its input.
        kernel: Its kernel.
        stride: Its stride.
        groups: Its groups; oneDNN takes another way where there are several.

    Returns:
        True for strided 1x1 convolutions with fewer than 16 inputs.
    """
    return groups == 1 and set(kernel) == {1} and max(stride) > 1 and channels < _NARROW


def breaks_channels_last(model: nn.Module) -> bool:
    """Whether a network on the CPU has a convolution module that must not run in channels_last.

    Args:
        model: The network.

    Returns:
        True if it has.
    """
    return any(
        isinstance(module, nn.Conv2d)
        and is_narrow(module.in_channels, module.kernel_size, module.stride, module.groups)
        for module in model.modules()
    )
