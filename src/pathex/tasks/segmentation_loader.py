"""Batches of images with label maps on the device of the training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pathex.data import SegmentationData, SegmentationSplit, Window, read_ahead, upload
from pathex.errors import InvalidInput, UnknownName
from pathex.train import check_share, cut_batches, epoch_generator, share_of

AUGMENTATIONS = ("none", "scale-crop")
"""``none`` cuts the middle of the image; ``scale-crop`` scales by 0.5 to 2, cuts anywhere, and mirrors."""

_SCALES: Mapping[str, float] = {"min_scale": 0.5, "max_scale": 2.0}

Batch = tuple[Tensor, Tensor]


class SegmentationLoader:
    """Batches of one split, decoded and cut by worker processes, a few batches ahead.

    In order come the middles of images whose short side was brought to the crop, or ``whole`` images one by one.
    """

    def __init__(
        self,
        data: SegmentationData,
        split: SegmentationSplit,
        window: Window,
        *,
        device: torch.device,
        batch_size: int,
        indices: Tensor | None = None,
        augment: str = "none",
        augment_options: Mapping[str, Any] | None = None,
        whole: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if augment not in AUGMENTATIONS:
            raise UnknownName("augment", augment, AUGMENTATIONS)
        self._data, self._split, self._window, self._device = data, split, window, device
        self._rows = torch.arange(len(split)) if indices is None else indices
        self._batch_size, self._whole, self._share = batch_size, whole, share
        self._scales = _scales(augment, augment_options or {})
        self.images = len(self._rows)
        check_share(self.images, batch_size, share)
        self.batches = len(cut_batches(self.images, batch_size, 2 * share[1]))

    def shuffled(self, seed: int, epoch: int) -> Iterator[Batch]:
        """One training pass in random order, which depends on nothing but seed and epoch."""
        generator = epoch_generator(seed, epoch)
        order = self._rows[torch.randperm(self.images, generator=generator)].tolist()
        seeds = torch.randint(2**62, (self.images,), generator=generator).tolist()
        keys = list(zip(order, seeds, strict=True))
        batches = [[keys[place] for place in piece] for piece in self._pieces(2 * self._share[1])]
        return self._loaded(partial(_changed, self._split, self._window, self._scales), batches)

    def in_order(self) -> Iterator[Batch]:
        """One pass in the split's own order, not augmented."""
        rows = self._rows.tolist()
        batches = [[rows[place] for place in piece] for piece in self._pieces(self._share[1])]
        if self._whole:
            return self._loaded(self._split.sample, [[row] for batch in batches for row in batch])
        return self._loaded(partial(_fitted, self._split, self._window), batches)

    def _pieces(self, least: int) -> list[range]:
        return [share_of(batch, *self._share) for batch in cut_batches(self.images, self._batch_size, least)]

    def _loaded(self, read: Callable[[Any], Batch], batches: Sequence[Sequence[Any]]) -> Iterator[Batch]:
        for images, labels in read_ahead(partial(_batch, read), batches, pin_memory=self._device.type == "cuda"):
            yield self._data.normalise(upload(images, self._device)), upload(labels, self._device).long()


def _changed(
    split: SegmentationSplit, window: Window, scales: tuple[float, float] | None, key: tuple[int, int]
) -> Batch:
    row, seed = key
    sample = split.sample(row)
    if scales is None:
        return window.centre(sample)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return window.random(sample, scales)


def _fitted(split: SegmentationSplit, window: Window, row: int) -> Batch:
    return window.fitted(split.sample(row))


def _batch(read: Callable[[Any], Batch], keys: Sequence[Any]) -> Batch:
    images, labels = zip(*map(read, keys), strict=True)
    return torch.stack(images), torch.stack(labels)


def _scales(augment: str, options: Mapping[str, Any]) -> tuple[float, float] | None:
    known = _SCALES if augment == "scale-crop" else {}
    for name, value in options.items():
        if name not in known:
            raise InvalidInput(f"unknown option {name!r} of augment {augment!r}. Known: {', '.join(known) or 'none'}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 10:
            raise InvalidInput(f"option {name!r} of augment {augment!r} must lie in (0, 10], got {value!r}")
    if not known:
        return None
    least, most = (options.get(name, usual) for name, usual in _SCALES.items())
    if least > most:
        raise InvalidInput(f"min_scale {least} of augment {augment!r} is above max_scale {most}")
    return least, most
