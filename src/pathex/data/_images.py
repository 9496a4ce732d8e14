"""What a data set of labelled images is, wherever it came from."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["ArraySplit", "ImageData", "Split", "assemble", "channel_statistics", "usual_augmentation"]

_CHUNK = 1024
_LARGEST_SHIFTED = 64


@runtime_checkable
class Split(Protocol):
    """Labelled images that can be fetched by number.

    Attributes:
        labels: Class of each image, int64 (N,), on the CPU.
    """

    @property
    def labels(self) -> Tensor:
        """Class of each image, int64 (N,)."""

    def __len__(self) -> int: ...

    def images(self, indices: Tensor) -> Tensor:
        """Fetch images.

        Args:
            indices: Numbers of the images, int64 (B,).

        Returns:
            Images, uint8 (B, C, H, W).
        """


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """Labelled images in memory.

    Attributes:
        data: Images, uint8 (N, C, H, W).
        labels: Class of each image, int64 (N,).
    """

    data: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """Fetch images.

        Args:
            indices: Numbers of the images, int64 (B,), on any device.

        Returns:
            Images, uint8 (B, C, H, W), on the device of ``data``.
        """
        return self.data[indices.to(self.data.device)]


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for image classification.

    Attributes:
        name: Name it was loaded by.
        train: Training images.
        test: Test images.
        num_classes: Number of classes.
        classes: Name of each class.
        mean: Mean of each channel over the training images, in [0, 1], float32 (C,).
        std: Standard deviation of each channel over the training images, in [0, 1], float32 (C,); 1 where it is zero.
        augment: Usual augmentation of this data set, see :data:`pathex.data.AUGMENTATIONS`.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    augment: str

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return len(self.mean)

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.train.images(torch.tensor([0])).shape[-1]

    def normalise(self, images: Tensor) -> Tensor:
        """Bring images to mean 0 and standard deviation 1 in each channel, by the training images' statistics.

        Args:
            images: uint8 (B, C, H, W), on any device.

        Returns:
            ``(images / 255 - mean) / std``, float32 (B, C, H, W), on the device of ``images``.
        """
        mean = self.mean.to(images.device).view(-1, 1, 1)
        std = self.std.to(images.device).view(-1, 1, 1)
        return images.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)


def channel_statistics(split: Split) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, from exact counts of the 256 values, so that order plays no part.

    Args:
        split: The images, all of them read once.

    Returns:
        Mean and (biased) standard deviation, float32 (C,), of values in [0, 1]; a constant channel has deviation 1.
    """
    counts = []
    for indices in torch.arange(len(split)).split(_CHUNK):
        channels = split.images(indices).transpose(0, 1).flatten(1)
        counts.append(torch.stack([torch.bincount(values, minlength=256) for values in channels]))
    shares = torch.stack(counts).sum(0).double()
    shares /= shares.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ values
    std = (shares * (values - mean[:, None]).square()).sum(1).sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()


def usual_augmentation(image_size: int) -> str:
    """Augmentation of a data set of which nothing but the size is known.

    Args:
        image_size: Side of the images, in pixels.

    Returns:
        ``crop-flip`` up to 64 pixels, above which a shift by 4 pixels changes little: ``flip``.
    """
    return "crop-flip" if image_size <= _LARGEST_SHIFTED else "flip"


def assemble(name: str, train: Split, test: Split, classes: tuple[str, ...]) -> ImageData:
    """Join two splits whose images and labels have been checked.

    Args:
        name: Name of the data set.
        train: Training images.
        test: Test images, of the same size.
        classes: Names of the classes.

    Returns:
        The data set, normalised by its own training images and augmented as its size suggests.
    """
    mean, std = channel_statistics(train)
    augment = usual_augmentation(train.images(torch.tensor([0])).shape[-1])
    return ImageData(name, train, test, len(classes), classes, mean, std, augment)
