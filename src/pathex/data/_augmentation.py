"""Augmentation of whole batches where the images are."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.data._colour import grey, jittered
from pathex.data._crops import box, boxes, resized_crops
from pathex.data._decoding import Cut
from pathex.data._pixels import upload
from pathex.errors import InvalidInput, UnknownName

__all__ = ["AUGMENTATIONS", "ON_HOST", "PADDING", "Augmentation", "Draws", "augment"]

AUGMENTATIONS = ("none", "flip", "crop-flip", "resized-crop")
PADDING = 4
_TRIES = 10

Draws = dict[str, Tensor]
"""Random numbers of a batch by their purpose, each with one row for each image."""

ON_HOST = ("order",)
"""Random numbers that stay on the CPU, where they decide what is computed."""


@dataclass(frozen=True)
class Augmentation:
    """A way to change each image of a batch at random.

    All random numbers are drawn first, for a whole batch and whatever the sizes of its images, so that any part of the
    batch can be changed by itself, on any device.

    Attributes:
        kind: One of :data:`AUGMENTATIONS`, see :func:`augment`.
        min_scale: ``resized-crop``: least share of the area, in (0, 1].
        max_ratio: ``resized-crop``: largest ratio of width to height, and of height to width, at least 1.
        grayscale: ``resized-crop``: probability that an image loses its colours.
        jitter: ``resized-crop``: brightness, contrast and saturation are multiplied by factors in
            [1 - jitter, 1 + jitter], in random order.
        hue: ``resized-crop``: hues are shifted by up to this share of the colour circle, at most 0.5.
    """

    kind: str = "none"
    min_scale: float = 0.08
    max_ratio: float = 4 / 3
    grayscale: float = 0.0
    jitter: float = 0.0
    hue: float = 0.0

    @classmethod
    def of(cls, kind: str, options: Mapping[str, Any] | None = None) -> "Augmentation":
        """Check names and numbers.

        Args:
            kind: Name of the augmentation.
            options: Its options; None is none.

        Returns:
            The augmentation.

        Raises:
            UnknownName: If the name is not known.
            InvalidInput: If it has no such option, or a number is out of range.
        """
        if kind not in AUGMENTATIONS:
            raise UnknownName("augmentation", kind, AUGMENTATIONS)
        ranges = {"min_scale": (1e-4, 1), "max_ratio": (1, 100), "grayscale": (0, 1), "jitter": (0, 1), "hue": (0, 0.5)}
        for name, value in (options or {}).items():
            if kind != "resized-crop" or name not in ranges:
                known = ", ".join(ranges) if kind == "resized-crop" else "none"
                raise InvalidInput(f"unknown option {name!r} of augmentation {kind!r}. Known: {known}")
            least, most = ranges[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise InvalidInput(f"option {name!r} of {kind!r} must be a number in [{least}, {most}], got {value!r}")
        return cls(kind, **(options or {}))

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Draw the random numbers of a batch.

        Args:
            count: Number of images.
            generator: A generator of the CPU.

        Returns:
            Random numbers, each tensor with ``count`` rows, on the CPU.
        """
        if self.kind == "none":
            return {}
        draws = {"flip": torch.rand(count, generator=generator) < 0.5}
        if self.kind == "crop-flip":
            draws["offset"] = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator).transpose(0, 1)
        if self.kind == "resized-crop":
            uniform = partial(torch.rand, dtype=torch.float64, generator=generator)
            draws["area"] = self.min_scale + (1 - self.min_scale) * uniform(count, _TRIES)
            draws["ratio"] = ((2 * uniform(count, _TRIES) - 1) * math.log(self.max_ratio)).exp()
            draws["corner"] = uniform(count, 2)
            if self.grayscale:
                draws["grey"] = uniform(count) < self.grayscale
            if self.jitter or self.hue:
                draws["factor"] = 1 + self.jitter * (2 * uniform(count, 3) - 1)
                draws["hue"] = self.hue * (2 * uniform(count, 1) - 1)
                draws["order"] = uniform(count, 4).argsort(1)
        return draws

    def cut(self, draws: Draws, place: int) -> Cut | None:
        """Where to cut an image of the batch from its original, for images that are decoded when they are needed.

        Args:
            draws: Random numbers of the batch.
            place: Place of the image in the batch.

        Returns:
            The part to keep, as a function of height and width; None if this augmentation takes the usual square.
        """
        if self.kind != "resized-crop":
            return None

        def part(height: int, width: int) -> tuple[int, int, int, int]:
            area, ratio, corner = (draws[name][place].tolist() for name in ("area", "ratio", "corner"))
            return box(area, ratio, corner, height, width, self.max_ratio)

        return part

    def apply(self, images: Tensor, draws: Draws, *, size: int | None = None, cut: bool = False) -> Tensor:
        """Change a batch.

        Args:
            images: uint8 or float (B, C, H, W), on any device; floats in [0, 255] where colours are changed.
            draws: Its random numbers, on the CPU or, all but :data:`ON_HOST`, on the device of the images: then nothing
                waits for the device.
            size: Side of the crops, in pixels; None is that of the images.
            cut: Whether the images were cut from their originals already, see :meth:`cut`.

        Returns:
            Images of the same type and device, (B, C, size, size) for ``resized-crop``, else (B, C, H, W);
            ``images`` itself for ``none``.
        """
        if self.kind == "none":
            return images
        flips = upload(draws["flip"], images.device)[:, None, None, None]
        if self.kind == "crop-flip":
            return _windows(images, flips, upload(draws["offset"], images.device))
        if self.kind == "resized-crop":
            if not cut:
                where = boxes(draws, images.shape[-2], images.shape[-1], self.max_ratio)
                images = resized_crops(images, where, size or images.shape[-1])
            if "grey" in draws:
                images = grey(images, draws["grey"])
            if "order" in draws:
                changes = [*([0, 1, 2] if self.jitter else []), *([3] if self.hue else [])]
                images = jittered(images, torch.cat([draws["factor"], draws["hue"]], 1), draws["order"], changes)
        return torch.where(flips, images.flip(3), images)


def augment(images: Tensor, kind: str, generator: torch.Generator, **options: float) -> Tensor:
    """Change each image of a batch in its own random way.

    ``flip`` mirrors an image left to right with probability 1/2. ``crop-flip`` also pads it with 4 zeros (black) on
    each side and cuts a window of the old size at a random place, as the published CIFAR protocol does on images that
    are not normalised yet. ``resized-crop`` cuts out a random share of the area with a random aspect ratio and resizes
    it to the old size, as torchvision's ``RandomResizedCrop`` does, may change colours, and flips.

    Args:
        images: uint8 or float (B, C, H, W), on any device.
        kind: One of :data:`AUGMENTATIONS`.
        generator: A generator of the CPU, so that every device draws the same numbers.
        **options: Options of the kind, see :class:`Augmentation`.

    Returns:
        Images of the same shape, type and device; ``images`` itself for ``none``.

    Raises:
        InvalidInput: If the kind or an option is not known.

    Example:
        >>> batch = torch.arange(4, dtype=torch.uint8).view(2, 1, 1, 2)
        >>> augment(batch, "flip", torch.Generator().manual_seed(0)).flatten(1).tolist()
        [[1, 0], [2, 3]]
    """
    augmentation = Augmentation.of(kind, options)
    return augmentation.apply(images, augmentation.draw(len(images), generator))


def _windows(images: Tensor, flips: Tensor, offsets: Tensor) -> Tensor:
    """Mirror images (flips: (B, 1, 1, 1)), and cut a window of the same size from what is padded, at (B, 2, 1)."""
    # One gather for both: to index by all four dimensions is several times slower on a CPU.
    count, channels, height, width = images.shape
    column = torch.arange(width, device=images.device)
    columns = torch.where(flips[:, :, 0], column.flip(0), column) + offsets[:, 1:]
    rows = torch.arange(height, device=images.device)[:, None] + offsets[:, :1]
    places = (rows * (width + 2 * PADDING) + columns).view(count, 1, height * width)
    padded = F.pad(images, (PADDING, PADDING, PADDING, PADDING)).flatten(2)
    return padded.gather(2, places.expand(-1, channels, -1)).view_as(images)
