"""Which images form a batch, and batches of a split on the device of the training."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathex.data import ArraySplit, Augmentation, DecodedSplit, Draws, ImageData, Split, apply_each, read_ahead, upload
from pathex.errors import InvalidInput, check_integer

RESIDENT_SHARE = 0.5
"""Share of the memory that is free on a device up to which the images of a split are put there."""


def epoch_seed(*numbers: int) -> int:
    """One seed in [0, 2**63) from several numbers of at least 0, such as the training's seed, epoch and process."""
    # SeedSequence mixes the numbers; their sum would give seed 0, epoch 1 the order of seed 1, epoch 0.
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator, on the CPU, of one epoch's order and augmentation, which follow from nothing else."""
    return torch.Generator().manual_seed(epoch_seed(seed, epoch))


def check_share(images: int, batch_size: int, share: tuple[int, int]) -> None:
    """Check that each process (its number, how many there are) gets an image of every whole batch."""
    rank, ranks = share
    if not 0 <= rank < ranks:
        raise InvalidInput(f"part must be the number of a process and the number of processes, got {share}")
    check_integer("batch_size", batch_size)
    if min(batch_size, images) < ranks:
        raise InvalidInput(
            f"batches of {min(batch_size, images)} images cannot be shared by {ranks} processes; allowed: at least one"
            " image for each process"
        )


def cut_batches(images: int, batch_size: int, least: int) -> list[range]:
    """Places of the images of each batch of a pass; a last batch of fewer than ``least`` joins the one before."""
    starts = list(range(0, images, batch_size))
    if len(starts) > 1 and images - starts[-1] < least:
        starts.pop()
    return [range(first, last) for first, last in zip(starts, [*starts[1:], images], strict=True)]


def share_of(batch: range, rank: int, ranks: int) -> range:
    """The contiguous piece of a batch that one of several processes sees; the first ones' may be larger by one."""
    least, larger = divmod(len(batch), ranks)
    first = rank * least + min(rank, larger)
    return batch[first : first + least + (rank < larger)]


class Feed:
    """Batches of one split, or of a part of it, shared out among processes.

    A split that holds its images in memory (an attribute ``data``) is put on the device once, as bytes, when it takes
    less than half of what is free there (`RESIDENT_SHARE`); order and random numbers of a pass follow it in one
    piece, and batches are gathered, changed and normalised there. Worker processes read all others a few batches ahead,
    and change those that ``resized-crop`` changes, which it cuts from the undecoded original.

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
            data: What the split belongs to; it resizes and normalises.
            split: ``data.train`` or ``data.test``.
            device: Where the batches are wanted.
            batch_size: Images in a batch, over all processes; the last batch takes what is left, and joins the one
                before where that is a single image, as BatchNorm cannot train on one, or fewer images than processes.
            indices: (n,) the images of the split to use; None is all.
            augment: Augmentation of `shuffled`, see `pathex.data.augment`.
            augment_options: Its options.
            part: Number of this process, and of all processes.
            workers: Processes that read images, which change nothing in the batches; None is as many as
                `pathex.data.default_workers` says, or fewer for few images.
        """
        if workers is not None:
            check_integer("workers", workers, 0)
        # What normalises has to be on the device too: a copy for each batch would wait for it.
        self._data = data.on(device)
        self._split, self._device = split, device
        self._augmentation = Augmentation.of(augment, augment_options)
        if self._augmentation.kind == "resized-crop":
            self._augmentation.transform(data.image_size, data.in_channels)  # where it cannot, it says so here
        self._rows = torch.arange(len(split)) if indices is None else indices
        self._labels = split.labels.to(device)
        pixels = getattr(split, "data", None)
        self._pixels = pixels.to(device) if isinstance(pixels, Tensor) and _fits(pixels, device) else None
        # Other splits may not bear to be used by several processes.
        self._workers = workers if isinstance(split, ArraySplit | DecodedSplit) else 0
        self.images = len(self._rows)
        check_share(self.images, batch_size, part)
        shares = [share_of(batch, *part) for batch in cut_batches(self.images, batch_size, max(2, part[1]))]
        self._pieces = [slice(share.start, share.stop) for share in shares]
        self.batches = len(shares)

    def shuffled(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One training pass by seed and epoch: images, float32 (B, C, H, W), and labels (B,), this process's share."""
        generator = epoch_generator(seed, epoch)
        order = self._rows[torch.randperm(self.images, generator=generator)]
        return self._read(order, self._augmentation, self._augmentation.draw(self.images, generator))

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in the split's own order, not augmented; see `shuffled`."""
        return self._read(self._rows, Augmentation(), {})

    def _read(self, order: Tensor, augmentation: Augmentation, draws: Draws) -> Iterator[tuple[Tensor, Tensor]]:
        """The pieces of this process; what they need besides the images is brought to the device at once."""
        rows = upload(order, self._device)
        if "seed" in draws:
            transform = augmentation.transform(self._data.image_size, self._data.in_channels)
            read = self._loaded(order, transform, draws.pop("seed"))
            augmentation = Augmentation()
        elif self._pixels is None:
            read = self._loaded(order)
        else:
            read = (self._pixels.index_select(0, rows[piece]) for piece in self._pieces)
        draws = {name: upload(values, self._device) for name, values in draws.items()}
        for piece, images in zip(self._pieces, read, strict=True):
            pixels = images.to(self._device, non_blocking=True)
            if augmentation.kind == "crop-flip":  # its padding is of the resized image
                pixels = self._data.resized(pixels)
            changed = augmentation.apply(pixels, {name: values[piece] for name, values in draws.items()})
            yield self._data.normalise(changed), self._labels.index_select(0, rows[piece])

    def _loaded(self, order: Tensor, transform: Any = None, seeds: Tensor | None = None) -> Iterator[Tensor]:
        columns = [order] if seeds is None else [order, seeds]
        batches = [torch.stack([column[piece] for column in columns], 1).tolist() for piece in self._pieces]
        read = partial(_fetched, self._split, transform)
        return read_ahead(read, batches, workers=self._workers, pin_memory=self._device.type == "cuda")


def _fetched(split: Split, transform: Any, batch: Sequence[Sequence[int]]) -> Tensor:
    """The images of some rows, each changed by the random numbers of its seed where there are any."""
    rows, *others = zip(*batch, strict=True)
    if transform is None:
        return split.images(torch.tensor(rows))
    [seeds] = others
    if isinstance(split, DecodedSplit):
        return apply_each(lambda row: split.image(row, transform), rows, seeds)
    return apply_each(transform, split.images(torch.tensor(rows)), seeds)


def _fits(pixels: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return pixels.nbytes < RESIDENT_SHARE * free
