"""Batches of a split on the device of the training."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from pathex.data import Augmentation, DecodedSplit, ImageData, Split, reading_threads
from pathex.train.batching import check_share, cut_batches, share_of
from pathex.train.seeding import epoch_generator

__all__ = ["Feed"]

_AHEAD = 3
"""Batches that are read while one is trained on."""


class Feed:
    """Batches of one split, or of a part of it, shared out among processes.

    A split that holds its images in memory (an attribute ``data``) is put on the device once, as bytes, when it takes
    less than half of what is free there. All others are read by index, a few batches ahead: images that are decoded
    when they are needed by several threads, and ``resized-crop`` cuts them from the undecoded original.

    With several processes each whole batch, its order and its augmentation included, is drawn as for one process, and
    cut into contiguous pieces in the order of the processes: together they see what one would see. Pieces of a batch
    that does not divide evenly differ by one image, so that each image counts once; whoever averages over the
    processes has to weight by their sizes.

    Attributes:
        images: Number of images in one pass, over all processes.
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
        augment: str = "none",
        augment_options: Mapping[str, Any] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare the batches.

        Args:
            data: The ``pathex.data.ImageData`` that the split belongs to; it resizes and normalises.
            split: ``data.train`` or ``data.test``.
            device: Where the batches are wanted.
            batch_size: Images in a batch, over all processes; the last batch takes what is left. What is left over
                and too small (a single image, as BatchNorm cannot train on one, or fewer images than processes) joins
                the batch before it.
            indices: (n,) the images of the split to use; None is all.
            augment: Name of the augmentation of :meth:`shuffled`, as ``pathex.data.augment`` knows it.
            augment_options: Its options.
            part: Number of this process, and of all processes.

        Raises:
            InvalidInput: If augmentation or part cannot be used, or a batch has fewer images than processes.
        """
        self._data, self._split, self._device, self._batch_size = data, split, device, batch_size
        self._share = part
        self._augmentation = Augmentation.of(augment, augment_options)
        self._rows = torch.arange(len(split)) if indices is None else indices
        self._labels = split.labels.to(device)
        pixels = getattr(split, "data", None)
        self._pixels: Tensor | None = None
        if isinstance(pixels, Tensor) and _fits(pixels, device):
            self._pixels = pixels.to(device)
        self.images = len(self._rows)
        check_share(self.images, batch_size, part)
        self.batches = len(self._cut())

    def shuffled(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One training pass in random order, augmented.

        Args:
            seed: Seed of the training.
            epoch: Number of the epoch.

        Returns:
            Normalised float32 images (B, C, H, W) and labels (B,): this process's piece of each batch.
        """
        generator = epoch_generator(seed, epoch)
        order = self._rows[torch.randperm(self.images, generator=generator)]
        return self._read(order, self._augmentation, generator)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in the split's own order, not augmented.

        Returns:
            Normalised float32 images (B, C, H, W) and labels (B,): this process's piece of each batch.
        """
        return self._read(self._rows, Augmentation(), torch.Generator())

    def _cut(self) -> list[range]:
        return cut_batches(self.images, self._batch_size, max(2, self._share[1]))

    def _read(
        self, order: Tensor, augmentation: Augmentation, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The pieces of this process, with random numbers drawn batch by batch."""

        def pieces() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
            for batch in self._cut():
                draws = augmentation.draw(len(batch), generator)
                own = share_of(range(len(batch)), *self._share)
                piece = slice(own.start, own.stop)
                yield order[batch.start : batch.stop][piece], {name: values[piece] for name, values in draws.items()}

        originals = self._pixels is None and isinstance(self._split, DecodedSplit)
        size = self._data.image_size if augmentation.kind == "resized-crop" and not originals else None
        for rows, draws, fetched in self._fetched(pieces(), augmentation):
            # Its padding is of the resized image; the others resize as they cut, or while they normalise.
            pixels = self._data.resized(fetched) if augmentation.kind == "crop-flip" else fetched
            changed = augmentation.apply(pixels, draws, size=size, cut=originals)
            yield self._data.normalise(changed), self._labels[rows]

    def _fetched(
        self, pieces: Iterator[tuple[Tensor, dict[str, Tensor]]], augmentation: Augmentation
    ) -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor]]:
        """Row numbers and pixels of each piece on the device, and its random numbers."""
        if self._pixels is not None:
            for piece, draws in pieces:
                rows = piece.to(self._device, non_blocking=True)
                yield rows, draws, self._pixels[rows]
            return
        # Images are decoded one by one; any other split takes a whole piece, and may not bear several threads.
        decoding = isinstance(self._split, DecodedSplit)
        pool = ThreadPoolExecutor(reading_threads() if decoding else 1)
        waiting: deque[tuple[Tensor, dict[str, Tensor], Callable[[], Tensor]]] = deque()
        try:
            for piece, draws in pieces:
                waiting.append((piece, draws, self._submit(pool, piece, draws, augmentation)))
                if len(waiting) > _AHEAD:
                    yield self._moved(*waiting.popleft())
            while waiting:
                yield self._moved(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _submit(
        self, pool: ThreadPoolExecutor, piece: Tensor, draws: dict[str, Tensor], augmentation: Augmentation
    ) -> Callable[[], Tensor]:
        """Begin to read a piece; what is returned waits for it."""
        split, pinned = self._split, self._device.type == "cuda"
        if not isinstance(split, DecodedSplit):
            future: Future[Tensor] = pool.submit(split.images, piece)
            return lambda: future.result().pin_memory() if pinned else future.result()
        side = split.image_size
        out = torch.empty(len(piece), 3, side, side, dtype=torch.uint8, pin_memory=pinned)

        def fill(place: int, number: int) -> None:
            out[place] = split.image(number, augmentation.cut(draws, place))

        futures = [pool.submit(fill, place, number) for place, number in enumerate(piece.tolist())]

        def wait() -> Tensor:
            for each in futures:
                each.result()
            return out

        return wait

    def _moved(
        self, piece: Tensor, draws: dict[str, Tensor], wait: Callable[[], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        pixels = wait().to(self._device, non_blocking=True)
        return piece.to(self._device, non_blocking=True), draws, pixels


def _fits(pixels: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return pixels.nbytes < free / 2
