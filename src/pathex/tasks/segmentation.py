"""Semantic segmentation: cross-entropy over the labelled pixels, measured by the mean IoU over all test images."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.data import PruningSet, load
from pathex.data._pairs import IGNORED, Frame, SegmentationData, pair_pruning_set
from pathex.errors import InvalidInput, UnknownName
from pathex.tasks._building import about, compare_normalisation, part_of, training_rows
from pathex.tasks._pair_feed import EVALUATIONS, PairFeed
from pathex.tasks._sliding import SlidingWindow
from pathex.tasks._task import Load, Task, create_network
from pathex.train import Batches, evaluate
from pathex.train.batching import cut_batches

__all__ = ["Segmentation", "build_segmentation", "class_iou", "pixel_loss"]

_CROP = 513
_SCORING_BATCH = 4
# Side of the small image that shows which sizes a network takes: as many pixels more than a multiple of 64 as the crop.
_PROBE = 64


@dataclass(frozen=True)
class Segmentation(Task):
    """A network and the images it is to segment.

    Attributes:
        model: The network, on the CPU, in eval mode as long as nothing trains it.
        create: Makes the network anew from a seed, without pre-trained weights.
        example: A normalised window (1, C, side, side).
        data: The images.
        train_indices: (n,) training images that are trained on.
        validation_indices: (m,) training images held out; None without validation.
        frame: The window that the network sees.
        evaluation: How test images are measured: ``full`` or ``crop``.
        stride: Distance of the windows of a full evaluation, in pixels.
    """

    metric_name: ClassVar[str] = "miou"
    model: nn.Module
    create: Callable[[int], nn.Module]
    example: Tensor
    data: SegmentationData
    train_indices: Tensor
    validation_indices: Tensor | None
    frame: Frame
    evaluation: str
    stride: int

    @property
    def augment(self) -> str:  # type: ignore[override]
        """Name of the usual augmentation."""
        return "scale-crop"

    @property
    def augment_options(self) -> Mapping[str, Any]:  # type: ignore[override]
        """Options of the usual augmentation: those that it has by itself."""
        return {}

    def pruning_set(self, images_per_class: int, seed: int) -> PruningSet:
        """Training images so that each class but the background is in as many; never validation images.

        Args:
            images_per_class: Images of each class.
            seed: Seed of the choice.

        Returns:
            Windows in the middle of the images, normalised, not augmented, with label maps int64 (N, side, side).
        """
        return pair_pruning_set(self.data, images_per_class, seed, self.frame, self.train_indices)

    def scoring_batches(self, images: PruningSet) -> list[tuple[Tensor, Tensor]]:
        """The pruning set in the batches of the published training, so that scoring needs no more memory than that.

        Args:
            images: The pruning set.

        Returns:
            Batches of four; none of a single image, on which BatchNorm has no statistics.
        """
        places = cut_batches(len(images.images), _SCORING_BATCH, 2)
        return [(images.images[p.start : p.stop], images.labels[p.start : p.stop]) for p in places]

    def feed(
        self,
        part: str,
        device: torch.device,
        batch_size: int,
        *,
        augment: str = "none",
        augment_options: Mapping[str, Any] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> Batches | None:
        """Batches of one part of the data.

        Args:
            part: ``train``, ``validation`` (the middle of the images, as with ``crop``) or ``test``.
            device: Where the batches are wanted.
            batch_size: Images in a batch, over all processes.
            augment: ``none`` or ``scale-crop``, for the training part.
            augment_options: Its options.
            share: Number of this process and of all of them.

        Returns:
            The batches; None where no validation images were held out.
        """
        chosen = part_of(self.data, part, self.train_indices, self.validation_indices)
        if chosen is None:
            return None
        split, indices = chosen
        return PairFeed(
            self.data,
            split,
            self.frame,
            device=device,
            batch_size=batch_size,
            indices=indices,
            augment=augment,
            augment_options=augment_options,
            evaluation=self.evaluation if part == "test" else "crop",
            share=share,
        )

    def loss(self, name: str, label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss.

        Args:
            name: ``auto`` or ``cross-entropy``.
            label_smoothing: Label smoothing, in [0, 1).

        Returns:
            Mean loss of ``(outputs, labels)`` over the labelled pixels.

        Raises:
            InvalidInput: For another loss.
        """
        if name not in {"auto", "cross-entropy"}:
            raise InvalidInput(f"loss {name!r}: segmentation has auto and cross-entropy")
        return partial(pixel_loss, label_smoothing=label_smoothing)

    def metric(self, device: torch.device) -> Any:
        """Mean IoU, from one confusion matrix over all images, of the classes that are predicted or there.

        Args:
            device: Where outputs and labels are.

        Returns:
            A torchmetrics metric of ``(outputs, labels)``.
        """
        from torchmetrics.classification import MulticlassJaccardIndex

        metric = MulticlassJaccardIndex(self.data.num_classes, ignore_index=IGNORED, validate_args=False)
        return metric.to(device)

    def facts(self) -> dict[str, Any]:
        """Normalisation and classes of the data, and how images are cut.

        Returns:
            Plain values.
        """
        return {
            **about(self.data),
            "crop": self.frame.crop,
            "padded_to": self.frame.side,
            "evaluation": self.evaluation,
            "stride": self.stride,
        }

    def test(self, model: nn.Module, *, fabric: Any, batch_size: int) -> dict[str, Any]:
        """Measure on the test images.

        A full evaluation gives every process all images, so that all make the same number of forward passes.

        Args:
            model: The network, on the device of ``fabric``.
            fabric: The ``lightning_fabric.Fabric`` of the training.
            batch_size: Images in a forward pass, over all processes, or windows, in each.

        Returns:
            ``test_miou``, a fraction, ``test_images``, and ``test_class_iou``: that of each class, None for one that
            is neither predicted nor there.
        """
        whole = self.evaluation == "full"
        share = (0, 1) if whole else (fabric.global_rank, fabric.world_size)
        feed = self.feed("test", fabric.device, batch_size, share=share)
        assert feed is not None
        crop, side = self.frame.crop, self.frame.side
        network = SlidingWindow(model, crop, self.stride, side, batch_size) if whole else model
        metric = self.metric(fabric.device)
        value = evaluate(network, feed, metric)
        with metric.sync_context():
            shares = class_iou(metric.confmat)
        each = dict(zip(self.data.classes, shares, strict=True))
        return {"test_miou": value, "test_images": feed.images, "test_class_iou": each}


def pixel_loss(outputs: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, averaged over the labelled pixels of all images together.

    Args:
        outputs: Logits (B, K, H, W).
        labels: Classes, int64 (B, H, W), 255 where there is none.
        label_smoothing: Label smoothing, in [0, 1).

    Returns:
        A scalar; zero if no pixel is labelled.
    """
    total = F.cross_entropy(outputs, labels, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def class_iou(confusion: Tensor) -> list[float | None]:
    """Intersection over union of each class.

    Args:
        confusion: Pixels by true class (rows) and predicted class, int64 (K, K).

    Returns:
        Fractions; None for a class without a pixel in either.
    """
    counts = confusion.double()
    hits = counts.diag()
    unions = counts.sum(0) + counts.sum(1) - hits
    return [float(hit / union) if union else None for hit, union in zip(hits, unions, strict=True)]


def build_segmentation(
    model: str,
    data: str,
    *,
    seed: int,
    weights: str | None = None,
    validation: float = 0.0,
    model_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    task_options: Mapping[str, Any] | None = None,
    load_data: Load | None = None,
) -> Segmentation:
    """Load the data and build the network.

    The initial weights follow from ``seed`` alone: the random state before the call plays no part and is restored.

    Args:
        model: Name of a model, such as ``smp:DeepLabV3Plus``.
        data: Name of a data set, such as ``voc2012``.
        seed: Seed of initialization and of the validation split.
        weights: Weights to start from; None is random initialization.
        validation: Fraction of the training images held out, in [0, 1).
        model_options: Options of the model's factory.
        data_options: Options of the data set.
        task_options: ``crop``, the side of the window in pixels (513); ``evaluation``, ``full`` (whole images by
            overlapping windows, the default) or ``crop``; ``stride`` of the windows of a full evaluation (two thirds
            of the crop).
        load_data: Loads the data; None is ``pathex.data.load``.

    Returns:
        The task; nothing is written.

    Raises:
        InvalidInput: If an option cannot be used, the data have no label maps, or the network does not give one number
            for each class and pixel.
    """
    crop, evaluation, stride = _options(task_options or {})
    images: Any = (load_data or load)(data, **(data_options or {}))
    if not isinstance(images, SegmentationData):
        raise InvalidInput(f"data {data!r} has one class an image; task 'segmentation' needs label maps: voc2012")
    # An image shows several classes: nothing to keep in proportion.
    rows, held_out = training_rows(torch.zeros(len(images.train), dtype=torch.long), validation, seed)
    if len(rows) < 2:
        raise InvalidInput(f"data {data!r} has {len(rows)} image to train on; BatchNorm needs two in a batch")
    create = partial(create_network, model, images.num_classes, images.in_channels, options=model_options or {})
    network = create(seed=seed, weights=weights)
    compare_normalisation(model, weights, model_options or {}, images)
    frame = images.frame(crop, _side(network, crop, images, model))
    first, _ = frame.centre(images.train.pair(int(rows[0])))
    return Segmentation(
        network,
        lambda other: create(seed=other, weights=None),
        images.normalise(first[None]),
        images,
        rows,
        held_out,
        frame,
        evaluation,
        stride,
    )


def _options(options: Mapping[str, Any]) -> tuple[int, str, int]:
    known = ("crop", "evaluation", "stride")
    for name in options:
        if name not in known:
            raise InvalidInput(f"unknown option {name!r} of task 'segmentation'. Known: {', '.join(known)}")
    crop, evaluation, stride = options.get("crop", _CROP), options.get("evaluation", "full"), options.get("stride")
    if not _is_natural(crop):
        raise InvalidInput(f"option 'crop' of task 'segmentation' must be a positive integer, got {crop!r}")
    if evaluation not in EVALUATIONS:
        raise UnknownName("evaluation", evaluation, EVALUATIONS)
    if stride is None:
        stride = max(1, round(crop * 2 / 3))
    if not _is_natural(stride) or stride > crop:
        raise InvalidInput(f"option 'stride' of task 'segmentation' must lie in 1 to {crop} (the crop), got {stride!r}")
    return crop, evaluation, stride


def _is_natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


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
            problem = f"fails on {probe} x {probe} pixels: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        wanted = (1, data.num_classes, probe, probe)
        if isinstance(outputs, Tensor) and outputs.shape == wanted:
            return side
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        problem = f"gives {shape} for one image of {probe} x {probe} pixels; segmentation needs {wanted}"
    raise InvalidInput(f"model {name!r} {problem}")
