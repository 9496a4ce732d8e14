"""Batches of a split on the device of the training."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pathex.data import ImageData, Split
from pathex.data import augment as augmented

__all__ = ["Feed", "epoch_generator"]


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator of one epoch's order and augmentation.

    It depends on nothing else, so that an epoch started again from its beginning is the same bit for bit.

    Args:
        seed: Seed of the training.
        epoch: Number of the epoch.

    Returns:
        A generator on the CPU.
    """
    # SeedSequence mixes the two numbers; their sum would give seed 0, epoch 1 the order of seed 1, epoch 0.
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) >> 1)


class Feed:
    """Batches of one split, or of a part of it.

    A split that holds its images in memory (an attribute ``data``) is put on the device once, as bytes, when it takes
    less than half of what is free there. All others are read by index in one background thread, one batch ahead.

    Attributes:
        images: Number of images in one pass.
        batches: Number of batches in one pass.
    """

    def __init__(
        self,
        data: ImageData,
        split: Split,
        *,
        device: torch.device,
        batch_size: int,
        indices: Tensor | None = None,
    ) -> None:
        """Prepare the batches.

        Args:
            data: The ``pathex.data.ImageData`` that the split belongs to; it normalises.
            split: ``data.train`` or ``data.test``.
            device: Where the batches are wanted.
            batch_size: Images in a batch; the last batch takes what is left. A single image left over joins the
                batch before it, as BatchNorm cannot train on one.
            indices: (n,) the images of the split to use; None is all.
        """
        self._data, self._split, self._device, self._batch_size = data, split, device, batch_size
        self._rows = torch.arange(len(split)) if indices is None else indices
        self._labels = split.labels.to(device)
        pixels = getattr(split, "data", None)
        self._pixels: Tensor | None = None
        if isinstance(pixels, Tensor) and _fits(pixels, device):
            self._pixels = pixels.to(device)
        self.images = len(self._rows)
        self.batches = len(self._cut(self._rows))

    def shuffled(self, seed: int, epoch: int, augment: str) -> Iterator[tuple[Tensor, Tensor]]:
        """One training pass in random order.

        Args:
            seed: Seed of the training.
            epoch: Number of the epoch.
            augment: Name of the augmentation, as ``pathex.data.augment`` knows it.

        Yields:
            Normalised float32 images (B, C, H, W) and labels (B,).
        """
        generator = epoch_generator(seed, epoch)
        order = self._rows[torch.randperm(self.images, generator=generator)]
        for pixels, labels in self._read(order):
            yield self._data.normalise(augmented(pixels, augment, generator)), labels

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in the split's own order, not augmented.

        Yields:
            Normalised float32 images (B, C, H, W) and labels (B,).
        """
        for pixels, labels in self._read(self._rows):
            yield self._data.normalise(pixels), labels

    def _cut(self, order: Tensor) -> list[Tensor]:
        parts = list(order.split(self._batch_size))
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def _read(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        parts = self._cut(order)
        if self._pixels is None:
            yield from self._read_ahead(parts)
            return
        for part in parts:
            rows = part.to(self._device, non_blocking=True)
            yield self._pixels[rows], self._labels[rows]

    def _read_ahead(self, parts: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        with ThreadPoolExecutor(max_workers=1) as reader:
            pending = reader.submit(self._decode, parts[0])
            for part, following in zip(parts, [*parts[1:], None], strict=True):
                pixels = pending.result()
                if following is not None:
                    pending = reader.submit(self._decode, following)
                yield pixels.to(self._device, non_blocking=True), self._labels[part.to(self._device)]

    def _decode(self, part: Tensor) -> Tensor:
        pixels: Tensor = self._split.images(part)
        return pixels.pin_memory() if self._device.type == "cuda" else pixels


def _fits(pixels: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return pixels.nbytes < free / 2
