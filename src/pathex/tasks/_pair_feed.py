"""Batches of images with label maps on the device of the training."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from pathex.data import reading_pool, upload
from pathex.data._pairs import Frame, PairFiles, SegmentationData
from pathex.errors import InvalidInput, UnknownName
from pathex.train.batching import check_share, cut_batches, share_of
from pathex.train.seeding import epoch_generator

__all__ = ["AUGMENTATIONS", "EVALUATIONS", "PairFeed"]

AUGMENTATIONS = ("none", "scale-crop")
"""``none`` cuts the middle of the image; ``scale-crop`` scales by 0.5 to 2, cuts anywhere, and mirrors."""

EVALUATIONS = ("full", "crop")
"""``full`` gives whole images one by one; ``crop`` the middle of images whose short side was brought to the crop."""

_SCALES: Mapping[str, float] = {"min_scale": 0.5, "max_scale": 2.0}
_AHEAD = 2  # batches that are read while one is used

Pair = tuple[Tensor, Tensor]


class PairFeed:
    """Batches of one split, decoded and cut in threads, a few batches ahead.

    Attributes:
        images: Number of images in one pass, over all processes.
        batches: Number of batches in one pass.
    """

    def __init__(
        self,
        data: SegmentationData,
        split: PairFiles,
        frame: Frame,
        *,
        device: torch.device,
        batch_size: int,
        indices: Tensor | None = None,
        augment: str = "none",
        augment_options: Mapping[str, Any] | None = None,
        evaluation: str = "crop",
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare the batches.

        Args:
            data: What the split belongs to; it normalises.
            split: ``data.train`` or ``data.test``.
            frame: The window that the network sees.
            device: Where the batches are wanted.
            batch_size: Images in a batch, over all processes; the last batch takes what is left. If this would give a
                process less than two images, it joins the batch before, as BatchNorm cannot train on one.
            indices: (n,) the images of the split to use; None is all.
            augment: One of :data:`AUGMENTATIONS`, for shuffled passes.
            augment_options: ``min_scale`` and ``max_scale`` of ``scale-crop``.
            evaluation: One of :data:`EVALUATIONS`, for passes in order.
            share: Number of this process and of all of them. Order and augmentation are drawn for whole batches, each
                of which is cut into one contiguous piece for each process, whose sizes differ by one at most.

        Raises:
            UnknownName: If a name is not known.
            InvalidInput: If an option of the augmentation or the share cannot be used, or a batch has fewer images
                than processes.
        """
        if augment not in AUGMENTATIONS:
            raise UnknownName("augment", augment, AUGMENTATIONS)
        if evaluation not in EVALUATIONS:
            raise UnknownName("evaluation", evaluation, EVALUATIONS)
        self._data, self._split, self._frame, self._device = data, split, frame, device
        self._rows = (torch.arange(len(split)) if indices is None else indices).tolist()
        self._batch_size, self._evaluation, self._share = batch_size, evaluation, share
        self._scales = _scales(augment, augment_options or {})
        self.images = len(self._rows)
        check_share(self.images, batch_size, share)
        self.batches = len(cut_batches(self.images, batch_size, 2 * share[1]))

    def shuffled(self, seed: int, epoch: int) -> Iterator[Pair]:
        """One training pass in random order, which depends on nothing but seed and epoch.

        Args:
            seed: Seed of the training.
            epoch: Number of the epoch.

        Yields:
            Normalised images, float32 (B, C, side, side), and labels, int64 (B, side, side).
        """
        generator = epoch_generator(seed, epoch)
        order = torch.randperm(self.images, generator=generator).tolist()
        draws = torch.rand(self.images, 4, dtype=torch.float64, generator=generator).tolist()

        def read(place: int) -> Pair:
            pair = self._split.pair(self._rows[order[place]])
            return (
                self._frame.centre(pair)
                if self._scales is None
                else self._frame.drawn(pair, draws[place], self._scales)
            )

        for batch in _read_ahead(self._own(2 * self._share[1]), read):
            yield self._put(batch)

    def in_order(self) -> Iterator[Pair]:
        """One pass in the split's own order, not augmented.

        Yields:
            Normalised images, float32 (B, C, H, W), and labels, int64 (B, H, W).
        """
        whole = self._evaluation == "full"

        def read(place: int) -> Pair:
            pair = self._split.pair(self._rows[place])
            return pair if whole else self._frame.fitted(pair)

        for batch in _read_ahead(self._own(self._share[1]), read):
            for part in [[pair] for pair in batch] if whole else [batch]:
                yield self._put(part)

    def _own(self, least: int) -> list[range]:
        return [share_of(batch, *self._share) for batch in cut_batches(self.images, self._batch_size, least)]

    def _put(self, batch: Sequence[Pair]) -> Pair:
        images = upload(torch.stack([image for image, _ in batch]), self._device)
        labels = upload(torch.stack([labels for _, labels in batch]), self._device)
        return self._data.normalise(images), labels.long()


def _scales(augment: str, options: Mapping[str, Any]) -> tuple[float, float] | None:
    known = _SCALES if augment == "scale-crop" else {}
    for name, value in options.items():
        if name not in known:
            raise InvalidInput(f"unknown option {name!r} of augment {augment!r}. Known: {', '.join(known) or 'none'}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 10:
            raise InvalidInput(f"option {name!r} of augment {augment!r} must lie in (0, 10], got {value!r}")
    if not known:
        return None
    chosen = {**_SCALES, **options}
    if chosen["min_scale"] > chosen["max_scale"]:
        raise InvalidInput(
            f"min_scale {chosen['min_scale']} of augment {augment!r} is above max_scale {chosen['max_scale']}"
        )
    return chosen["min_scale"], chosen["max_scale"]


def _read_ahead(batches: Sequence[range], read: Callable[[int], Pair]) -> Iterator[list[Pair]]:
    """Every batch in order, the next ones being read meanwhile; threads change nothing in what is read."""
    pending: deque[list[Future[Pair]]] = deque()
    with reading_pool() as pool:
        for batch in batches:
            pending.append([pool.submit(read, place) for place in batch])
            if len(pending) > _AHEAD:
                yield [future.result() for future in pending.popleft()]
        while pending:
            yield [future.result() for future in pending.popleft()]
