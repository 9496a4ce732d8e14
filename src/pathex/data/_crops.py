"""Random parts of images, resized, for a whole batch at once."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pathex.data._pixels import upload

__all__ = ["box", "boxes", "resized_crops"]


def boxes(draws: Mapping[str, Tensor], height: int, width: int, max_ratio: float) -> Tensor:
    """Parts of images as torchvision's ``RandomResizedCrop`` chooses them.

    The first try that fits into the image counts; without one it is the largest part in the centre whose ratio is
    allowed.

    Args:
        draws: ``area`` (B, T), share of the area, and ``ratio`` (B, T), of width to height, for each try; ``corner``
            (B, 2) in [0, 1), where the part lies in the room that is left.
        height: Height of the images.
        width: Width of the images.
        max_ratio: Largest ratio, and one over the smallest.

    Returns:
        Top, left, height and width of each part, int64 (B, 4), where the draws are.
    """
    area = draws["area"] * (height * width)
    # Rounding half to even, as Python's round.
    columns, rows = (area * draws["ratio"]).sqrt().round().long(), (area / draws["ratio"]).sqrt().round().long()
    fits = (columns > 0) & (columns <= width) & (rows > 0) & (rows <= height)
    first = fits.long().argmax(1, keepdim=True)
    found = fits.any(1)
    rows = torch.where(found, rows.gather(1, first)[:, 0], min(height, round(width * max_ratio)))
    columns = torch.where(found, columns.gather(1, first)[:, 0], min(width, round(height * max_ratio)))
    room = torch.stack([height - rows, width - columns], 1)
    drawn = (draws["corner"] * (room + 1)).floor().long().minimum(room)
    corner = torch.where(found[:, None], drawn, room // 2)
    return torch.cat([corner, rows[:, None], columns[:, None]], 1)


def box(
    areas: Sequence[float],
    ratios: Sequence[float],
    corner: Sequence[float],
    height: int,
    width: int,
    max_ratio: float,
) -> tuple[int, int, int, int]:
    """One part, as :func:`boxes` chooses it: for threads, in which a few numbers are faster without tensors.

    Args:
        areas: Share of the area for each try.
        ratios: Ratio of width to height for each try.
        corner: Where the part lies in the room that is left.
        height: Height of the image.
        width: Width of the image.
        max_ratio: Largest ratio, and one over the smallest.

    Returns:
        Top, left, height and width of the part.
    """
    for share, ratio in zip(areas, ratios, strict=True):
        area = share * (height * width)
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = height - rows, width - columns
            return min(top, int(corner[0] * (top + 1))), min(left, int(corner[1] * (left + 1))), rows, columns
    rows, columns = min(height, round(width * max_ratio)), min(width, round(height * max_ratio))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def resized_crops(images: Tensor, where: Tensor, size: int) -> Tensor:
    """Cut a part of its own from each image and resize it, bilinear with antialiasing.

    Args:
        images: uint8 or float (B, C, H, W), on any device.
        where: Top, left, height and width of each part, int64 (B, 4).
        size: Side of the result, in pixels.

    Returns:
        Images (B, C, size, size) of the same type and device; uint8 is rounded once.
    """
    count, channels, height, width = images.shape
    top, left, rows, columns = upload(where, images.device).unbind(1)
    dtype = images.dtype if images.is_floating_point() else torch.float32
    down, across = _weights(top, rows, height, size, dtype), _weights(left, columns, width, size, dtype)
    # Rows first for all channels side by side: two products of matrices for each image.
    halfway = torch.bmm(down, images.to(dtype).transpose(1, 2).reshape(count, height, channels * width))
    halfway = halfway.view(count, size, channels, width).transpose(1, 2).reshape(count, channels * size, width)
    out = torch.bmm(halfway, across.transpose(1, 2)).view(count, channels, size, size)
    return out if images.is_floating_point() else out.round_().clamp_(0, 255).to(images.dtype)


def _weights(start: Tensor, length: Tensor, available: int, size: int, dtype: torch.dtype) -> Tensor:
    """What each pixel (last dimension, ``available``) gives to each of the ``size`` resized ones."""
    device = start.device
    start, length = start[:, None, None].double(), length[:, None, None].double()
    scale = length / size
    centre = start + (torch.arange(size, device=device)[:, None] + 0.5) * scale
    pixel = torch.arange(available, device=device)
    # A triangle, widened where the image shrinks; beyond the part nothing counts.
    weights = (1 - (pixel + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixel >= start) & (pixel < start + length))
    return (weights / weights.sum(-1, keepdim=True)).to(dtype)
