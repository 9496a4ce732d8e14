"""A square window of an image and its label map, cut alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = 255
"""Label of pixels that belong to no class: borders between objects, and padding."""

Sample = tuple[Tensor, Tensor]
"""An image, uint8 (3, H, W), and its label map, uint8 (H, W)."""


@dataclass(frozen=True)
class Window:
    """A square window of an image and its labels; what lies outside the image is labelled :data:`IGNORED`.

    Each method takes an image (3, H, W) and labels (H, W), and returns (3, side, side) and (side, side).

    Attributes:
        crop: Side of the window, in pixels.
        side: Side of what is returned: networks that need multiples of a number get the window with padding on its
            right and below.
        colour: What images are padded with, for each channel.
    """

    crop: int
    side: int
    colour: tuple[int, ...]

    def centre(self, sample: Sample) -> Sample:
        """The window in the middle."""
        from torchvision.transforms import v2

        height, width = sample[1].shape
        rows, columns = max(0, self.crop - height), max(0, self.crop - width)
        padded = v2.Pad([columns, rows, columns, rows], fill=self._fill())(*_typed(sample))
        top, left = ((length - self.crop) // 2 for length in padded[1].shape)
        return self._padded(*(v2.functional.crop(part, top, left, self.crop, self.crop) for part in padded))

    def fitted(self, sample: Sample) -> Sample:
        """The middle of the image after its short side is brought to that of the window."""
        return self.centre(_scaled(sample, self.crop / min(sample[1].shape)))

    def random(self, sample: Sample, scales: tuple[float, float]) -> Sample:
        """Image scaled by a factor in ``scales``, a window at any place, maybe mirrored: by the global generator."""
        from torchvision.transforms import v2

        crop = v2.RandomCrop(self.crop, pad_if_needed=True, fill=self._fill())
        scaled = _scaled(sample, float(torch.empty(()).uniform_(*scales)))
        return self._padded(*v2.RandomHorizontalFlip()(*crop(*_typed(scaled))))

    def _padded(self, *sample: Tensor) -> Sample:
        from torchvision.transforms import v2

        margin = self.side - self.crop
        image, labels = v2.Pad([0, 0, margin, margin], fill=self._fill())(*sample)
        return image.as_subclass(Tensor), labels.as_subclass(Tensor)

    def _fill(self) -> Mapping[Any, Any]:
        from torchvision import tv_tensors

        return {tv_tensors.Image: list(self.colour), tv_tensors.Mask: IGNORED}


def _typed(sample: Sample) -> tuple[Any, Any]:
    """The sample as torchvision's transforms tell images and label maps apart."""
    from torchvision import tv_tensors

    return tv_tensors.Image(sample[0]), tv_tensors.Mask(sample[1])


def _scaled(sample: Sample, factor: float) -> Sample:
    from torchvision.transforms.v2 import functional as transforms

    size = [max(1, round(length * factor)) for length in sample[1].shape]
    image, labels = (transforms.resize(part, size, antialias=True) for part in _typed(sample))
    return image, labels
