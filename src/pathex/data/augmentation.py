"""Random changes of images."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.data.images import upload
from pathex.errors import InvalidInput, check_name, check_names

AUGMENTATIONS = ("none", "flip", "crop-flip", "resized-crop")
PADDING = 4

Draws = dict[str, Tensor]
"""Random numbers by their purpose, each with one row for each image."""


@dataclass(frozen=True)
class Augmentation:
    """A way to change each image at random.

    All random numbers, or for ``resized-crop`` a seed for each image, are drawn first. So any part of the images can be
    changed by itself, in any process.

    Attributes:
        kind: One of `AUGMENTATIONS`, see `augment`.
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
        """Check name and options; `pathex.errors.InvalidInput` if one is unknown or out of range."""
        check_name("augmentation", kind, AUGMENTATIONS)
        ranges = {"min_scale": (1e-4, 1), "max_ratio": (1, 100), "grayscale": (0, 1), "jitter": (0, 1), "hue": (0, 0.5)}
        check_names(f"option of augmentation {kind!r}:", options or (), ranges if kind == "resized-crop" else ())
        for name, value in (options or {}).items():
            least, most = ranges[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise InvalidInput(f"option {name!r} of {kind!r} must be a number in [{least}, {most}], got {value!r}")
        return cls(kind, **(options or {}))

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Random numbers of ``count`` images by their purpose, each with a row for each image, on the CPU."""
        if self.kind == "none":
            return {}
        if self.kind == "resized-crop":
            return {"seed": torch.randint(2**62, (count,), generator=generator)}
        draws = {"flip": torch.rand(count, generator=generator) < 0.5}
        if self.kind == "crop-flip":
            draws["offset"] = torch.randint(2 * PADDING + 1, (count, 2, 1), generator=generator)
        return draws

    def transform(self, size: int, channels: int) -> Callable[[Any], Any] | None:
        """What changes an image, of Pillow or a tensor (C, H, W), by the global generator; None where `apply` does."""
        if self.kind != "resized-crop":
            return None
        from torchvision.transforms import v2

        ratio = (1 / self.max_ratio, self.max_ratio)
        steps = [v2.RandomResizedCrop(size, scale=(self.min_scale, 1.0), ratio=ratio, antialias=True)]
        if self.grayscale or self.jitter or self.hue:
            if channels not in {1, 3}:
                raise InvalidInput(f"grayscale, jitter and hue need images of 1 or 3 channels, got {channels}")
            steps += [v2.RandomGrayscale(self.grayscale), v2.ColorJitter(*[self.jitter] * 3, self.hue)]
        return v2.Compose([*steps, v2.RandomHorizontalFlip()])

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Change a batch, uint8 or float (B, C, H, W); where ``draws`` are on its device, nothing waits for it."""
        if self.kind == "none":
            return images
        if self.kind == "resized-crop":
            transform = self.transform(images.shape[-1], images.shape[1])
            assert transform is not None
            return apply_each(transform, images, draws["seed"].tolist())
        flips = upload(draws["flip"], images.device)[:, None, None, None]
        if self.kind == "crop-flip":
            return _windows(images, flips, upload(draws["offset"], images.device))
        return torch.where(flips, images.flip(3), images)


def apply_each(transform: Callable[[Any], Tensor], images: Iterable[Any], seeds: Iterable[int]) -> Tensor:
    """Stack what becomes of each image, each with PyTorch's global generator at its own seed; it is put back."""
    changed = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(transform(image))
    return torch.stack(changed)


def augment(images: Tensor, kind: str, generator: torch.Generator, **options: float) -> Tensor:
    """Change each image of a batch, uint8 or float (B, C, H, W), in its own random way.

    ``flip`` mirrors an image left to right with probability 1/2. ``crop-flip`` also pads it with 4 zeros (black) on
    each side and cuts a window of the old size at a random place, as the published CIFAR protocol does on images that
    are not normalised yet. ``resized-crop`` is torchvision's ``RandomResizedCrop`` to the old size, maybe followed by
    ``RandomGrayscale`` and ``ColorJitter``, and flips; its options are those of `Augmentation`.

    Returns:
        Images of the same shape, type and device; ``images`` itself for ``none``. The generator is one of the CPU, so
        that every device draws the same numbers. An unknown kind or option raises `pathex.errors.InvalidInput`.

    Examples:
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
