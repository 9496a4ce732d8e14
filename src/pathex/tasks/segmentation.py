"""Semantic segmentation: cross-entropy over the labelled pixels, measured by the mean IoU over all test images."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.data import (
    IGNORED,
    PruningSet,
    SegmentationData,
    SegmentationSplit,
    Window,
    read_ahead,
    segmentation_pruning_set,
    upload,
)
from pathex.errors import InvalidInput, check_integer, check_name, check_names, reason
from pathex.tasks.task import Setup, Task, about, part_of, training_rows
from pathex.train import Batches, check_share, cut_batches, epoch_generator, evaluate, share_of

AUGMENTATIONS = ("none", "scale-crop")
"""``none`` cuts the middle of the image; ``scale-crop`` scales by 0.5 to 2, cuts anywhere, and mirrors."""

_SCALES: Mapping[str, float] = {"min_scale": 0.5, "max_scale": 2.0}

Batch = tuple[Tensor, Tensor]

_CROP = 513
_SCORING_BATCH = 4
# Side of the small image that shows which sizes a network takes: as many pixels more than a multiple of 64 as the crop.
_PROBE = 64


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
        check_name("augment", augment, AUGMENTATIONS)
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
    check_names(f"option of augment {augment!r}:", options, known)
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 10:
            raise InvalidInput(f"option {name!r} of augment {augment!r} must lie in (0, 10], got {value!r}")
    if not known:
        return None
    least, most = (options.get(name, usual) for name, usual in _SCALES.items())
    if least > most:
        raise InvalidInput(f"min_scale {least} of augment {augment!r} is above max_scale {most}")
    return least, most


@dataclass(frozen=True)
class Segmentation(Task):
    """A network and the images it is to segment."""

    metric_name: ClassVar[str] = "miou"
    data: SegmentationData
    train_indices: Tensor
    validation_indices: Tensor | None
    window: Window
    evaluation: str
    stride: int

    def pruning_set(self, images_per_class: int, seed: int) -> PruningSet:
        """Windows in the middle of training images, so that each class but the background is in as many."""
        return segmentation_pruning_set(self.data, images_per_class, seed, self.window, self.train_indices)

    def scoring_batches(self, images: PruningSet) -> list[tuple[Tensor, Tensor]]:
        """The pruning set in batches of four, as in the published training; none of a single image, for BatchNorm."""
        places = cut_batches(len(images.images), _SCORING_BATCH, 2)
        return [(images.images[p.start : p.stop], images.labels[p.start : p.stop]) for p in places]

    def feed(
        self, part: str, device: torch.device, batch_size: int, *, share: tuple[int, int] = (0, 1), **options: Any
    ) -> Batches | None:
        """Batches of one part of the data, see `Task.feed`; validation is measured as with ``crop``."""
        chosen = part_of(self.data, part, self.train_indices, self.validation_indices)
        if chosen is None:
            return None
        how = {"device": device, "batch_size": batch_size, "share": share, **options}
        whole = part == "test" and self.evaluation == "full"
        return SegmentationLoader(self.data, window=self.window, **chosen, whole=whole, **how)

    def loss(self, name: str, label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Cross-entropy (``auto``), averaged over the labelled pixels."""
        if name not in {"auto", "cross-entropy"}:
            raise InvalidInput(f"loss {name!r}: segmentation has auto and cross-entropy")
        return partial(pixel_loss, label_smoothing=label_smoothing)

    def metric(self, device: torch.device) -> Any:
        """Mean IoU, from one confusion matrix over all images, of the classes that are predicted or there."""
        from torchmetrics.classification import MulticlassJaccardIndex

        return MulticlassJaccardIndex(self.data.num_classes, ignore_index=IGNORED, validate_args=False).to(device)

    def facts(self) -> dict[str, Any]:
        """Normalisation and classes of the data, and how images are cut."""
        return {
            **about(self.data),
            "crop": self.window.crop,
            "padded_to": self.window.side,
            "evaluation": self.evaluation,
            "stride": self.stride,
        }

    def test(self, model: nn.Module, *, fabric: Any, batch_size: int) -> dict[str, Any]:
        """Measure on the test images."""
        whole = self.evaluation == "full"  # then every process has all images, and as many forward passes as others
        share = (0, 1) if whole else (fabric.global_rank, fabric.world_size)
        feed = self.feed("test", fabric.device, batch_size, share=share)
        assert feed is not None
        crop, side = self.window.crop, self.window.side
        network = SlidingWindow(model, crop, self.stride, side, batch_size) if whole else model
        metric = self.metric(fabric.device)
        value = evaluate(network, feed, metric)
        with metric.sync_context():
            shares = class_iou(metric.confmat)
        each = dict(zip(self.data.classes, shares, strict=True))
        return {"test_miou": value, "test_images": feed.images, "test_class_iou": each}


def pixel_loss(outputs: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits (B, K, H, W), averaged over all pixels of labels (B, H, W) but 255; 0 without any."""
    total = F.cross_entropy(outputs, labels, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def class_iou(confusion: Tensor) -> list[float | None]:
    """Intersection over union of each class from pixels by true and predicted class (K, K); None without a pixel."""
    counts = confusion.double()
    hits = counts.diag()
    unions = counts.sum(0) + counts.sum(1) - hits
    return [float(hit / union) if union else None for hit, union in zip(hits, unions, strict=True)]


def build(setup: Setup) -> Segmentation:
    """Load the data and build the network; see `pathex.tasks.build`."""
    crop, evaluation, stride = _options(setup.task_options)
    images = setup.images()
    if not isinstance(images, SegmentationData):
        raise InvalidInput(f"data {setup.data!r} has one class an image; task 'segmentation' needs label maps: voc2012")
    # An image shows several classes: nothing to keep in proportion.
    rows, held_out = training_rows(torch.zeros(len(images.train), dtype=torch.long), setup.validation, setup.seed)
    if len(rows) < 2:
        raise InvalidInput(f"data {setup.data!r} has {len(rows)} image to train on; BatchNorm needs two in a batch")
    network, create = setup.networks(images, images.num_classes)
    window = images.window(crop, _side(network, crop, images, setup.model))
    first, _ = window.centre(images.train.sample(int(rows[0])))
    example = images.normalise(first[None])
    return Segmentation(network, create, example, images, rows, held_out, window, evaluation, stride)


def _options(options: Mapping[str, Any]) -> tuple[int, str, int]:
    check_names("option of task 'segmentation':", options, ("crop", "evaluation", "stride"))
    crop, evaluation = options.get("crop", _CROP), options.get("evaluation", "full")
    check_integer("option 'crop' of task 'segmentation'", crop)
    check_name("evaluation", evaluation, ("full", "crop"))
    stride = options.get("stride")
    stride = max(1, round(crop * 2 / 3)) if stride is None else stride
    check_integer("option 'stride' of task 'segmentation'", stride, 1, crop)
    return crop, evaluation, stride


def _side(network: nn.Module, crop: int, data: SegmentationData, name: str) -> int:
    """The smallest side from the crop on, itself or a multiple of 8, 16, 32 or 64, that the network takes."""
    problem = ""
    for multiple in (1, 8, 16, 32, 64):
        side = math.ceil(crop / multiple) * multiple
        probe = _PROBE + side % _PROBE
        try:
            with torch.no_grad():
                outputs = network(torch.zeros(1, data.in_channels, probe, probe))
        except Exception as error:  # the network is the user's, and fails in its own ways
            problem = f"fails on {probe} x {probe} pixels: {reason(error)}"
            continue
        wanted = (1, data.num_classes, probe, probe)
        if isinstance(outputs, Tensor) and outputs.shape == wanted:
            return side
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        problem = f"gives {shape} for one image of {probe} x {probe} pixels; segmentation needs {wanted}"
    raise InvalidInput(f"model {name!r} {problem}")


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin that cover a length; the last ends where the length does."""
    return [*range(0, size - window, stride), max(0, size - window)]


class SlidingWindow(nn.Module):
    """A segmentation network on images of any size."""

    def __init__(self, network: nn.Module, window: int, stride: int, side: int, at_once: int = 1) -> None:
        super().__init__()
        self.network = network
        self.window, self.stride, self.side, self.at_once = window, stride, side, at_once
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W)."""
        window, (count, _, height, width) = self.window, images.shape
        # Zeros are the mean colour of normalised images; what the network takes beyond the window is padded too.
        padded = F.pad(images, (0, max(0, window - width), 0, max(0, window - height)))
        starts = [window_starts(size, window, self.stride) for size in padded.shape[2:]]
        corners = list(product(*starts))
        total: Tensor | None = None
        visits = padded.new_zeros(padded.shape[2:])
        for first in range(0, len(corners), self.at_once):
            part = corners[first : first + self.at_once]
            tiles = torch.cat([padded[:, :, top : top + window, left : left + window] for top, left in part])
            margin = self.side - window
            logits = self.network(F.pad(tiles, (0, margin, 0, margin)))[:, :, :window, :window]
            if total is None:
                total = logits.new_zeros(count, logits.shape[1], *padded.shape[2:])
            for (top, left), tile in zip(part, logits.split(count), strict=True):
                total[:, :, top : top + window, left : left + window] += tile
                visits[top : top + window, left : left + window] += 1
        assert total is not None, "there is at least one window"
        return (total / visits)[:, :, :height, :width]
