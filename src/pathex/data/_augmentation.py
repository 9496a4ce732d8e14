"""Augmentation of whole batches where the images are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.errors import InvalidInput

__all__ = ["AUGMENTATIONS", "PADDING", "augment"]

AUGMENTATIONS = ("none", "flip", "crop-flip")
PADDING = 4


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Change each image of a batch in its own random way.

    ``flip`` mirrors an image left to right with probability 1/2. ``crop-flip`` also pads it with 4 zeros (black) on
    each side and cuts a window of the old size at a random place, as the published CIFAR protocol does on images that
    are not normalised yet.

    Args:
        images: uint8 or float (B, C, H, W), on any device.
        kind: One of :data:`AUGMENTATIONS`.
        generator: A generator of the CPU, so that every device draws the same numbers.

    Returns:
        Images of the same shape, type and device; ``images`` itself for ``none``.

    Raises:
        InvalidInput: If the kind is not known.

    Example:
        >>> batch = torch.arange(4, dtype=torch.uint8).view(2, 1, 1, 2)
        >>> augment(batch, "flip", torch.Generator().manual_seed(0)).flatten(1).tolist()
        [[1, 0], [2, 3]]
    """
    if kind not in AUGMENTATIONS:
        raise InvalidInput(f"unknown augmentation {kind!r}. Known: {', '.join(AUGMENTATIONS)}")
    if kind == "none":
        return images
    count, channels, height, width = images.shape
    flips = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(flips[:, None], torch.arange(width).flip(0), torch.arange(width))
    rows = torch.arange(height).expand(count, -1)
    if kind == "crop-flip":
        offsets = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator)
        images = F.pad(images, (PADDING, PADDING, PADDING, PADDING))
        rows, columns = rows + offsets[0], columns + offsets[1]
    device = images.device
    return images[
        torch.arange(count, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows.to(device)[:, None, :, None],
        columns.to(device)[:, None, None, :],
    ]
