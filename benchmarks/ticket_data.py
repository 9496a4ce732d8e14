"""Images on the device of `tickets.py`: where they come from, and the batches that a captured step reads.

All training images lie on the device as padded bytes. What is random in an epoch is drawn on the CPU, once for the
whole epoch and with the very numbers that `pathex.train.Feed` draws; a step then needs no number from the host.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pathex
from pathex.data import ArraySplit, ImageData
from pathex.data._augmentation import PADDING
from pathex.data._images import assemble
from pathex.errors import InvalidInput
from pathex.train.seeding import epoch_generator

__all__ = ["DeviceImages", "batch_sizes", "epoch_plan", "load", "sheets", "subset"]

_SIDE = 32
_PER_SHEET = 1000


def load(name: str) -> ImageData:
    """Load a data set with all its images in memory.

    Args:
        name: A name of ``pathex.data.load`` (``npz:PATH``, ``fashion-mini``, ...), or ``sheets:FOLDER,FOLDER,...``.

    Returns:
        The data set.

    Raises:
        InvalidInput: If it cannot be loaded, or is too large to be decoded into memory.
    """
    prefix, _, rest = name.partition(":")
    data = sheets([Path(folder) for folder in rest.split(",")]) if prefix == "sheets" else pathex.data.load(name)
    if not isinstance(data.train, ArraySplit) or not isinstance(data.test, ArraySplit):
        raise InvalidInput(f"data {name!r} does not fit into memory, which these benchmarks need")
    return data


def subset(data: ImageData, images: int) -> ImageData:
    """The first images of both splits.

    Args:
        data: The data set.
        images: Images of each split.

    Returns:
        The smaller data set; mean and deviation stay those of the whole.
    """
    train, test = (ArraySplit(split.images(torch.arange(min(images, len(split)))), split.labels[:images])
                   for split in (data.train, data.test))  # fmt: skip
    return replace(data, train=train, test=test)


def sheets(folders: Sequence[Path]) -> ImageData:
    """Read pictures that hold 1000 small images each, in rows, from one or more folders.

    The files are ``train-000.webp``, ``train-001.webp``, ..., ``test-000.webp``, ... (or ``.png``) and
    ``train-labels.npy``, ``test-labels.npy``; it makes no difference which folder holds which file.

    Args:
        folders: The folders.

    Returns:
        The data set of 32x32 images.

    Raises:
        InvalidInput: If a file is missing.
    """
    name = "sheets:" + ",".join(map(str, folders))
    train, test = (_read_sheets(folders, part, name) for part in ("train", "test"))
    count = int(train.labels.max()) + 1
    return assemble(name, train, test, tuple(map(str, range(count))))


def _read_sheets(folders: Sequence[Path], part: str, name: str) -> ArraySplit:
    files = {file.name: file for folder in folders for file in folder.glob(f"{part}-*")}
    if f"{part}-labels.npy" not in files:
        raise InvalidInput(f"data {name!r}: no file {part}-labels.npy there")
    labels = torch.from_numpy(np.load(files[f"{part}-labels.npy"], allow_pickle=False).astype(np.int64))
    paths = [files[file] for file in sorted(files) if re.fullmatch(rf"{part}-\d+\.(webp|png)", file)]
    needed = -(-len(labels) // _PER_SHEET)
    if [int(path.stem.rpartition("-")[2]) for path in paths] != list(range(needed)):
        raise InvalidInput(f"data {name!r}: {len(labels)} {part} labels need sheets 0..{needed - 1}, got {len(paths)}")
    with ThreadPoolExecutor() as pool:
        tiles = torch.cat(list(pool.map(_tiles, paths)))
    return ArraySplit(tiles[: len(labels)].contiguous(), labels)


def _tiles(path: Path) -> Tensor:
    from PIL import Image

    with Image.open(path) as image:
        grid = np.asarray(image.convert("RGB"))
    rows, columns = grid.shape[0] // _SIDE, grid.shape[1] // _SIDE
    tiles = grid.reshape(rows, _SIDE, columns, _SIDE, 3).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(tiles.reshape(-1, 3, _SIDE, _SIDE)[:_PER_SHEET].copy())


@dataclass(frozen=True)
class DeviceImages:
    """Both splits on one device.

    Attributes:
        padded: Training images with 4 black pixels on each side, uint8 (N, H + 8, W + 8, C).
        labels: Their classes, int64 (N,).
        test: Test images, uint8 (M, C, H, W).
        test_labels: Their classes, int64 (M,).
        mean: Mean of each channel, in [0, 1], (C,).
        std: Standard deviation of each channel, (C,).
    """

    padded: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, data: ImageData, device: torch.device) -> "DeviceImages":
        """Put a data set on a device.

        Args:
            data: A data set of `load`.
            device: The device.

        Returns:
            Its images there.
        """
        train, test = (split.images(torch.arange(len(split))).to(device) for split in (data.train, data.test))
        padded = F.pad(train, (PADDING,) * 4).permute(0, 2, 3, 1).contiguous()
        labels = (data.train.labels.to(device), data.test.labels.to(device))
        return cls(padded, labels[0], test, labels[1], data.mean.to(device), data.std.to(device))

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.padded.device

    def batch(self, plan: Tensor) -> tuple[Tensor, Tensor]:
        """Cut, mirror and normalise training images, without a word from the host.

        Args:
            plan: Row, top, left and mirrored (0 or 1) of each image, int64 (4, B), on the device.

        Returns:
            Images, float32 (B, C, H, W), channels last, and labels (B,).
        """
        rows, top, left, mirrored = plan
        height, width = (side - 2 * PADDING for side in self.padded.shape[1:3])
        across = torch.arange(width, device=self.device)
        y = top[:, None] + torch.arange(height, device=self.device)
        x = left[:, None] + torch.where(mirrored[:, None] > 0, width - 1 - across, across)
        pixels = self.padded[rows[:, None, None], y[:, :, None], x[:, None, :]]
        return ((pixels.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2), self.labels[rows]

    def test_batch(self, start: int, size: int) -> tuple[Tensor, Tensor]:
        """Normalised test images.

        Args:
            start: Number of the first.
            size: How many, as far as there are.

        Returns:
            Images, float32 (B, C, H, W), channels last, and labels (B,).
        """
        pixels = self.test[start : start + size].float() / 255
        images = (pixels - self.mean[:, None, None]) / self.std[:, None, None]
        return images.contiguous(memory_format=torch.channels_last), self.test_labels[start : start + size]


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """Sizes of the batches of one pass, as `pathex.train.Feed` cuts them.

    Args:
        images: Images of the pass.
        batch_size: Images in a batch.

    Returns:
        The sizes; the last batch takes what is left, and a single image left over joins the batch before it.
    """
    sizes = [batch_size] * (images // batch_size)
    left = images % batch_size
    if left == 1 and sizes:
        sizes[-1] += 1
    elif left:
        sizes.append(left)
    return sizes


def epoch_plan(sizes: Sequence[int], seed: int, epoch: int, augment: str) -> Tensor:
    """What is random in an epoch: order, windows and mirrorings, drawn as `pathex.train.Feed` draws them.

    Args:
        sizes: Sizes of the batches.
        seed: Seed of the training.
        epoch: Number of the epoch.
        augment: One of ``pathex.data.AUGMENTATIONS``.

    Returns:
        Row, top, left and mirrored of each image in order, int64 (4, N), on the CPU.
    """
    generator = epoch_generator(seed, epoch)
    plan = torch.full((4, sum(sizes)), PADDING)
    plan[0] = torch.randperm(sum(sizes), generator=generator)
    plan[3] = 0
    if augment != "none":
        plan[3] = torch.rand(plan.shape[1], generator=generator) < 0.5
    if augment == "crop-flip":
        plan[1:3] = torch.randint(2 * PADDING + 1, (plan.shape[1], 2), generator=generator).T
    return plan
