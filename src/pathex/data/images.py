"""What a data set of labelled images is, wherever it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pathex.data.splits import DecodedSplit, Split
from pathex.data.workers import chunks, read_ahead

_CHUNK = 1024


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor to a device without waiting for what the device is doing."""
    if device.type == "cuda" and values.device.type == "cpu":
        # Only copies from pinned memory let the host go on.
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``(images / 255 - mean) / std`` of uint8 (B, C, H, W), in float32, where the images are."""
    mean, std = (upload(values, images.device).view(-1, 1, 1) for values in (mean, std))
    return images.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for image classification.

    Attributes:
        name: Name it was loaded by.
        train: Training images.
        test: Test images.
        num_classes: Number of classes.
        classes: Name of each class.
        mean: Mean of each channel that is subtracted, in [0, 1], float32 (C,): that of the training images, unless the
            data set or the caller has another.
        std: Standard deviation of each channel that is divided by, in [0, 1], float32 (C,); 1 where it is zero.
        augment: Usual augmentation of this data set, see `pathex.data.AUGMENTATIONS`.
        augment_options: Its options, see `pathex.data.Augmentation`.
        size: Side that networks see, in pixels, where the images are kept at another; None is the side of the images.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    augment: str
    augment_options: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return len(self.mean)

    @property
    def image_size(self) -> int:
        """Side of the square images that networks see, in pixels."""
        return self.size or self.train.images(torch.tensor([0])).shape[-1]

    def on(self, device: torch.device) -> "ImageData":
        """The same data, with what normalises them on a device, so that no batch has to bring it there."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def resized(self, images: Tensor) -> Tensor:
        """Bring uint8 images (B, C, H, W) to ``size``, if there is one: bilinear with antialiasing."""
        if self.size is None or images.shape[-1] == self.size:
            return images
        from torchvision.transforms.v2 import functional as transforms

        resized: Tensor = transforms.resize(images, [self.size, self.size], antialias=True)
        return resized

    def normalise(self, images: Tensor) -> Tensor:
        """``(images / 255 - mean) / std`` of resized uint8 images (B, C, H, W), float32, where they are."""
        return normalise(self.resized(images), self.mean, self.std)


def channel_statistics(split: Split) -> tuple[Tensor, Tensor]:
    """Mean and (biased) standard deviation of each channel, float32 (C,); 1 for a constant channel."""
    # From exact counts of the 256 values, so that the order of the images plays no part.
    workers = None if isinstance(split, DecodedSplit) else 0
    counts = read_ahead(partial(_counts, split), chunks(range(len(split)), _CHUNK), workers=workers)
    shares = torch.stack([*counts]).sum(0).double()
    shares /= shares.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ values
    std = (shares * (values - mean[:, None]).square()).sum(1).sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()


def _counts(split: Split, numbers: Sequence[int]) -> Tensor:
    """How often each of the 256 values is in each channel of some images, int64 (C, 256)."""
    channels = split.images(torch.tensor(numbers)).transpose(0, 1).flatten(1)
    return torch.stack([torch.bincount(values, minlength=256) for values in channels])
