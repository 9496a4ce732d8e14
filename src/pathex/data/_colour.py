"""Random changes of colour, with factors of its own for each image of a batch."""

from collections.abc import Collection

import torch
from torch import Tensor

from pathex.data._pixels import upload
from pathex.errors import InvalidInput

__all__ = ["grey", "jittered"]

_LUMA = (0.2989, 0.587, 0.114)
_CACHED = 8
"""Images that stay in the caches of a processor from one step to the next: four times faster than a whole batch."""


def grey(images: Tensor, chosen: Tensor) -> Tensor:
    """Take the colours from some of the images.

    Args:
        images: uint8 or float (B, C, H, W), C = 3; greyscale images (C = 1) stay as they are.
        chosen: Which, bool (B,).

    Returns:
        Images of the same shape and type.
    """
    if not _coloured(images):
        return images
    # For all of them, so that no one needs to know how many they are.
    return torch.where(upload(chosen, images.device)[:, None, None, None], _like(_luma(images.float()), images), images)


def jittered(images: Tensor, factors: Tensor, order: Tensor, changes: Collection[int] = range(4)) -> Tensor:
    """Change brightness, contrast, saturation and hue, with the formulas of torchvision's ``ColorJitter``.

    Args:
        images: uint8 or float (B, C, H, W) in [0, 255], C = 1 or 3.
        factors: Of brightness, contrast and saturation (1: no change), and the shift of the hue (0: none), (B, 4).
        order: The order of the four for each image, int64 (B, 4), on the CPU.
        changes: Those of the four that change anything; saturation and hue need colours.

    Returns:
        Images of the same shape and type; uint8 is rounded once, at the end.
    """
    if images.device.type == "cpu" and len(images) > _CACHED:
        parts = zip(images.split(_CACHED), factors.split(_CACHED), order.split(_CACHED), strict=True)
        return torch.cat([jittered(*part, changes) for part in parts])
    wanted = set(changes) if _coloured(images) else {0, 1} & set(changes)
    values = images.float() / 255
    factors = upload(factors, values.device).to(values.dtype)[:, :, None, None, None]
    # The images of each change at each step, in one list: how many they are the host knows, and need not ask for.
    counts = (order.T[:, :, None] == torch.arange(4)).sum(1).tolist()
    members = upload(order.T.argsort(dim=1, stable=True), values.device)
    for rows_of_step, sizes in zip(members.unbind(), counts, strict=True):
        for number, rows in enumerate(rows_of_step.split(sizes)):
            if number in wanted and len(rows):
                values[rows] = _CHANGES[number](values[rows], factors[rows, number])
    return _like(values * 255, images)


def _coloured(images: Tensor) -> bool:
    if images.shape[1] not in {1, 3}:
        raise InvalidInput(f"grayscale, jitter and hue need images of 1 or 3 channels, got {images.shape[1]}")
    return images.shape[1] == 3


def _like(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.dtype) if images.is_floating_point() else values.round().clamp(0, 255).to(images.dtype)


def _luma(values: Tensor) -> Tensor:
    if values.shape[1] == 1:
        return values
    red, green, blue = (share * channel for share, channel in zip(_LUMA, values.split(1, 1), strict=True))
    return red + green + blue


def _blend(values: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * values + (1 - factor) * other).clamp(0, 1)


def _brightness(values: Tensor, factor: Tensor) -> Tensor:
    return (factor * values).clamp(0, 1)


def _contrast(values: Tensor, factor: Tensor) -> Tensor:
    return _blend(values, _luma(values).mean((1, 2, 3), keepdim=True), factor)


def _saturation(values: Tensor, factor: Tensor) -> Tensor:
    return _blend(values, _luma(values), factor)


def _hue(values: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue in HSV space, where 6 is the whole circle."""
    most, least = values.amax(1, keepdim=True), values.amin(1, keepdim=True)
    span = most - least
    red, green, blue = values.split(1, 1)
    hue = torch.where(
        most == red, (green - blue), torch.where(most == green, 2 * span + blue - red, 4 * span + red - green)
    ) / span.clamp(min=torch.finfo(values.dtype).tiny)
    # The channels back from hue, value and span: each falls from the value where the hue is far from it.
    far = (torch.arange(5, 0, -2, device=values.device).view(3, 1, 1) + hue + 6 * shift).remainder(6)
    return most - span * far.minimum(4 - far).clamp(0, 1)


_CHANGES = (_brightness, _contrast, _saturation, _hue)
