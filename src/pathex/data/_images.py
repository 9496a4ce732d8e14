"""What a data set of labelled images is, wherever it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pathex.data._pixels import upload

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

    def subset(self, rows: Tensor, labels: Tensor) -> "ArraySplit":
        """Some of the images, under other labels.

        Args:
            rows: Numbers of the images, int64 (M,).
            labels: Their classes, int64 (M,).

        Returns:
            A split of its own.
        """
        return ArraySplit(self.data[rows], labels)


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
        augment: Usual augmentation of this data set, see :data:`pathex.data.AUGMENTATIONS`.
        augment_options: Its options, see :class:`pathex.data.Augmentation`.
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
        """The same data, with what normalises them on a device, so that no batch has to bring it there.

        Args:
            device: The device.

        Returns:
            A data set of its own; the images stay where they are.
        """
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def resized(self, images: Tensor) -> Tensor:
        """Bring images to the side that networks see.

        Args:
            images: uint8 (B, C, H, W), on any device.

        Returns:
            uint8 (B, C, size, size), bilinear with antialiasing; ``images`` themselves without a ``size``.
        """
        if self.size is None or images.shape[-1] == self.size:
            return images
        from torchvision.transforms.v2 import functional as transforms

        resized: Tensor = transforms.resize(images, [self.size, self.size], antialias=True)
        return resized

    def normalise(self, images: Tensor) -> Tensor:
        """Resize images to the side that networks see, and bring their channels to mean 0 and standard deviation 1.

        Args:
            images: uint8 (B, C, H, W), on any device.

        Returns:
            ``(images / 255 - mean) / std``, float32 (B, C, image_size, image_size), on the device of ``images``.
        """
        images = self.resized(images)
        mean = upload(self.mean, images.device).view(-1, 1, 1)
        std = upload(self.std, images.device).view(-1, 1, 1)
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


def assemble(
    name: str,
    train: Split,
    test: Split,
    classes: tuple[str, ...],
    *,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> ImageData:
    """Join two splits whose images and labels have been checked.

    Args:
        name: Name of the data set.
        train: Training images.
        test: Test images, of the same size.
        classes: Names of the classes.
        mean: Mean of each channel, float32 (C,); None is that of the training images, all of which are read then.
        std: Standard deviation of each channel, float32 (C,); None likewise.

    Returns:
        The data set, augmented as its size suggests.
    """
    if mean is None or std is None:
        own_mean, own_std = channel_statistics(train)
        mean, std = own_mean if mean is None else mean, own_std if std is None else std
    augment = usual_augmentation(train.images(torch.tensor([0])).shape[-1])
    return ImageData(name, train, test, len(classes), classes, mean, std, augment)
