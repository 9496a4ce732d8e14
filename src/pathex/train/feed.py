"""Batches of a split on the device of the training."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pathex.data import (
    ON_HOST,
    Augmentation,
    DecodedSplit,
    Draws,
    ImageData,
    Split,
    reading_pool,
    reading_threads,
    upload,
)
from pathex.errors import InvalidInput
from pathex.train.batching import check_share, cut_batches, share_of
from pathex.train.seeding import epoch_generator

__all__ = ["RESIDENT_SHARE", "Feed"]

RESIDENT_SHARE = 0.5
"""Share of the memory that is free on a device up to which the images of a split are put there."""

_AHEAD = 3
"""Batches that are read while one is trained on, at least."""

_AT_ONCE = 4
"""Images that a thread is given at a time: each handing over takes time of the thread that trains."""

_Piece = tuple[Tensor, Draws]
"""Numbers of the images of a piece, and its random numbers, on the CPU."""


class Feed:
    """Batches of one split, or of a part of it, shared out among processes.

    A split that holds its images in memory (an attribute ``data``) is put on the device once, as bytes, when it takes
    less than half of what is free there (:data:`RESIDENT_SHARE`); batches are gathered, changed and normalised there,
    and the host never waits. All others are read by threads, a few batches ahead: reading, decoding and resizing let go
    of Python's lock.

    With several processes each whole batch is drawn as for one process, and cut into contiguous pieces in their order.
    Pieces differ by one image at most: whoever averages over the processes has to weight by their sizes.

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
        workers: int | None = None,
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
            workers: Threads that decode images; 0 leaves it to the caller's. None is as many as this process may use
                cores (:func:`pathex.data.reading_threads`). It makes no difference to the batches.

        Raises:
            InvalidInput: If augmentation, part or workers cannot be used, or a batch has fewer images than processes.
        """
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
            raise InvalidInput(f"workers must be an integer of at least 0, or None, got {workers!r}")
        # What normalises has to be on the device too: a copy for each batch would wait for it.
        self._data = data.on(device)
        self._split, self._device, self._batch_size, self._workers = split, device, batch_size, workers
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
        """One training pass in random order, augmented, which follows from seed and epoch.

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
        originals = self._pixels is None and isinstance(self._split, DecodedSplit)
        size = self._data.image_size if augmentation.kind == "resized-crop" and not originals else None
        pieces = self._pieces(order, augmentation, generator)
        read = self._fetched(pieces, augmentation) if self._pixels is None else self._resident(self._pixels, pieces)
        for labels, draws, fetched in read:
            # Its padding is of the resized image; the others resize as they cut, or while they normalise.
            pixels = self._data.resized(fetched) if augmentation.kind == "crop-flip" else fetched
            changed = augmentation.apply(pixels, draws, size=size, cut=originals)
            yield self._data.normalise(changed), labels

    def _pieces(self, order: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Iterator[_Piece]:
        for batch in self._cut():
            draws = augmentation.draw(len(batch), generator)
            own = share_of(range(len(batch)), *self._share)
            piece = slice(own.start, own.stop)
            yield order[batch.start : batch.stop][piece], {name: values[piece] for name, values in draws.items()}

    def _resident(self, pixels: Tensor, pieces: Iterator[_Piece]) -> Iterator[tuple[Tensor, Draws, Tensor]]:
        """Labels, random numbers and pixels of each piece, from the device: what they need is brought there at once."""
        rows, draws = zip(*pieces, strict=True)
        sizes = [len(piece) for piece in rows]
        order = upload(torch.cat(rows), self._device)
        there = {
            name: upload(torch.cat([each[name] for each in draws]), self._device).split(sizes)
            for name in draws[0]
            if name not in ON_HOST
        }
        pieces_of_order = zip(order.split(sizes), self._labels.index_select(0, order).split(sizes), strict=True)
        for place, (piece, labels) in enumerate(pieces_of_order):
            own = {**draws[place], **{name: values[place] for name, values in there.items()}}
            yield labels, own, pixels.index_select(0, piece)

    def _fetched(self, pieces: Iterator[_Piece], augmentation: Augmentation) -> Iterator[tuple[Tensor, Draws, Tensor]]:
        """The same for pieces that are read meanwhile."""
        # Images are decoded one by one; any other split takes a whole piece, and may not bear several threads.
        decoding = isinstance(self._split, DecodedSplit)
        threads = (reading_threads() if self._workers is None else self._workers) if decoding else 1
        if threads == 0:
            for rows, draws in pieces:
                *_, images = (read() for read in self._parts(rows, draws, augmentation))
                yield self._moved(rows, draws, images)
            return
        ahead = max(_AHEAD, math.ceil(2 * _AT_ONCE * threads / self._batch_size))
        waiting: deque[tuple[Tensor, Draws, list[Future[Tensor]]]] = deque()
        with reading_pool(threads) as pool:
            for rows, draws in pieces:
                futures = [pool.submit(read) for read in self._parts(rows, draws, augmentation)]
                waiting.append((rows, draws, futures))
                if len(waiting) > ahead:
                    yield self._moved(*_waited(waiting.popleft()))
            while waiting:
                yield self._moved(*_waited(waiting.popleft()))

    def _parts(self, rows: Tensor, draws: Draws, augmentation: Augmentation) -> list[Callable[[], Tensor]]:
        """What has to be done to read a piece; everything done, each gives the whole piece."""
        split, pinned = self._split, self._device.type == "cuda"
        if not isinstance(split, DecodedSplit):

            def read() -> Tensor:
                images = split.images(rows)
                return images.pin_memory() if pinned and images.device.type == "cpu" else images

            return [read]
        side, numbers = split.image_size, rows.tolist()
        out = torch.empty(len(rows), 3, side, side, dtype=torch.uint8, pin_memory=pinned)

        def fill(places: range) -> Tensor:
            for place in places:
                out[place] = split.image(numbers[place], augmentation.cut(draws, place))
            return out

        places = range(len(numbers))
        return [partial(fill, places[first : first + _AT_ONCE]) for first in places[::_AT_ONCE]]

    def _moved(self, rows: Tensor, draws: Draws, images: Tensor) -> tuple[Tensor, Draws, Tensor]:
        labels = self._labels.index_select(0, upload(rows, self._device))
        return labels, draws, images.to(self._device, non_blocking=True)


def _waited(piece: tuple[Tensor, Draws, list["Future[Tensor]"]]) -> tuple[Tensor, Draws, Tensor]:
    rows, draws, futures = piece
    *_, images = (future.result() for future in futures)
    return rows, draws, images


def _fits(pixels: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return pixels.nbytes < RESIDENT_SHARE * free
