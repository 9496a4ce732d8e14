"""What every task has in common: what it is built from, a network, the images it learns from, a loss and a metric."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pathex import models
from pathex.data import ImageData, PruningSet, SegmentationData, load, validation_split
from pathex.errors import InvalidInput, PathexWarning
from pathex.train import Batches, Events, Mixed, Observe, Prepare, TrainOptions, evaluate, fit

LOSSES = ("auto", "cross-entropy", "mse")
"""Losses by name; ``auto`` is the task's own."""

_BATCH = 256

Load = Callable[..., Any]
"""Loads data as ``pathex.data.load`` does, which several runs may want to do once."""

# The statistics of CIFAR, Tiny-ImageNet, ImageNet and CLIP are closer to each other than this.
_FARTHEST_MEAN, _LARGEST_RATIO = 0.1, 1.5


@dataclass(frozen=True)
class Task(ABC):
    """A network and what it is to learn.

    Attributes:
        metric_name: Name of the metric, ``accuracy`` or ``miou``; a fraction, higher is better.
        model: The network, on the CPU, in eval mode as long as nothing trains it.
        create: Makes the network anew from a seed, without pre-trained weights.
        example: A normalised image (1, C, H, W).
        data: The data set.
        observe: What is asked for numbers after each epoch of a training.
    """

    metric_name: ClassVar[str] = "accuracy"
    model: nn.Module
    create: Callable[[int], nn.Module]
    example: Tensor
    data: Any
    observe: Observe | None = field(default=None, kw_only=True)

    @property
    def unprunable(self) -> tuple[str, ...]:
        """Names of modules or parameters that stay dense in any case."""
        return ()

    def source_task(self) -> "Task":
        """The task that a mask is found on by training; for most tasks, this one."""
        return self

    @abstractmethod
    def pruning_set(self, images_per_class: int, seed: int) -> PruningSet:
        """The normalised images that scores see; validation and test images are never among them."""

    def scoring_batches(self, images: PruningSet) -> list[tuple[Tensor, Tensor]]:
        """The pruning set in batches of 256, as methods defined on train-mode BatchNorm were published with."""
        return list(zip(images.images.split(_BATCH), images.labels.split(_BATCH), strict=True))

    @abstractmethod
    def feed(
        self, part: str, device: torch.device, batch_size: int, *, share: tuple[int, int] = (0, 1), **options: Any
    ) -> Batches | None:
        """Batches of ``train`` (with ``augment`` and its options), ``validation`` (None without) or ``test`` images."""

    @abstractmethod
    def loss(self, name: str, label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
        """One of `LOSSES` by its name: a function of ``(outputs, targets)`` that gives their mean loss."""

    @abstractmethod
    def metric(self, device: torch.device) -> Any:
        """A torchmetrics metric of ``(outputs, targets)``."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a run's result tells about the data, as plain values: normalisation, classes."""

    def augmented(self, options: TrainOptions) -> TrainOptions:
        """The options with the data set's own augmentation in place of ``auto``."""
        if options.augment != "auto":
            return options
        chosen = {**self.data.augment_options, **options.augment_options}
        return replace(options, augment=self.data.augment, augment_options=chosen)

    def groups(self, options: TrainOptions) -> list[dict[str, Any]]:
        """Parameters for the optimizer; with ``head_lr`` the head is a group of its own."""
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        if options.head_lr is None:
            return [{"params": list(trained.values())}]
        head = [name for name in models.head_parameters(self.model, self.data.num_classes) if name in trained]
        if not head:
            raise InvalidInput(f"head_lr: no head to train is known in {type(self.model).__name__}")
        body = [weight for name, weight in trained.items() if name not in head]
        return [{"params": body}, {"params": [trained[name] for name in head], "lr": options.head_lr}]

    def train(
        self,
        options: TrainOptions,
        *,
        fabric: Any,
        folder: Path,
        prepare: Prepare | None = None,
        on_event: Events | None = None,
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train the network; see `pathex.train.fit`. ``augment="auto"`` is the data set's own."""
        options = self.augmented(options)
        device, size, share = fabric.device, options.batch_size, (fabric.global_rank, fabric.world_size)
        change = {"augment": options.augment, "augment_options": options.augment_options}
        feed = self.feed("train", device, size, share=share, **change)
        assert feed is not None
        mixed = {"mixup": options.mixup, "cutmix": options.cutmix}
        return fit(
            self.model,
            Mixed(feed, self.data.num_classes, **mixed) if any(mixed.values()) else feed,
            options,
            fabric=fabric,
            loss=self.loss(options.loss, options.label_smoothing),
            metric=self.metric(device),
            metric_name=self.metric_name,
            groups=self.groups(options),
            folder=folder,
            validation=self.feed("validation", device, size, share=share),
            prepare=prepare,
            on_event=on_event,
            observe=self.observe,
        )

    def test(self, model: nn.Module, *, fabric: Any, batch_size: int) -> dict[str, Any]:
        """Measure on the test images: ``test_<metric_name>``, a fraction, and ``test_images``."""
        feed = self.feed("test", fabric.device, batch_size, share=(fabric.global_rank, fabric.world_size))
        assert feed is not None
        value = evaluate(model, feed, self.metric(fabric.device))
        return {f"test_{self.metric_name}": value, "test_images": feed.images}


@dataclass(frozen=True)
class Setup:
    """What a task is built from; see `pathex.tasks.build`."""

    model: str
    data: str
    seed: int
    weights: str | None = None
    validation: float = 0.0
    model_options: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)
    task_options: Mapping[str, Any] = field(default_factory=dict)
    load_data: Load | None = None

    def images(self) -> Any:
        """Load the data."""
        return (self.load_data or load)(self.data, **self.data_options)

    def networks(
        self, images: ImageData | SegmentationData, num_classes: int
    ) -> tuple[nn.Module, Callable[[int], nn.Module]]:
        """The network, in eval mode, and what makes it anew from a seed without the weights."""

        def create(weights: str | None, seed: int) -> nn.Module:
            arguments = (self.model, num_classes, images.in_channels)
            return initialised(partial(models.create, *arguments, weights=weights, **self.model_options), seed)

        network = create(self.weights, self.seed)
        self._compare_normalisation(images)
        return network, partial(create, None)

    def _compare_normalisation(self, data: ImageData | SegmentationData) -> None:
        """Warn if images are normalised quite otherwise than those that pre-trained weights saw."""
        try:
            expected = models.expected_normalisation(self.model, self.weights, **self.model_options)
        except InvalidInput:  # it has to be downloaded, and cannot be now
            return
        if expected is None or len(expected[0]) != data.in_channels:
            return
        mean, std = (torch.tensor(values) for values in expected)
        ratio = (std / data.std).log().abs().exp()
        if (mean - data.mean).abs().max() <= _FARTHEST_MEAN and ratio.max() <= _LARGEST_RATIO:
            return
        wanted, given = (
            f"mean {[round(value, 3) for value in one.tolist()]} and std {[round(value, 3) for value in two.tolist()]}"
            for one, two in ((mean, std), (data.mean, data.std))
        )
        warnings.warn(
            f"weights {self.weights!r} of {self.model!r} saw images normalised by {wanted}, and data {data.name!r} has"
            f" {given}; options mean and std of the data set change it",
            PathexWarning,
            stacklevel=4,
        )


def training_rows(labels: Tensor, validation: float, seed: int) -> tuple[Tensor, Tensor | None]:
    """Numbers of the images that are trained on, and of those held out, None without validation."""
    if validation == 0:
        return torch.arange(len(labels)), None
    return validation_split(labels, validation, seed)


def part_of(data: Any, part: str, trained: Tensor, held_out: Tensor | None) -> dict[str, Any] | None:
    """The split of ``train``, ``validation`` or ``test`` and which of its images, None for all; None without images."""
    if part == "test":
        return {"split": data.test}
    indices = trained if part == "train" else held_out
    return None if indices is None else {"split": data.train, "indices": indices}


def about(data: ImageData | SegmentationData) -> dict[str, Any]:
    """What a result tells about a data set, as plain values."""
    normalisation = {"mean": data.mean.tolist(), "std": data.std.tolist()}
    return {"normalisation": normalisation, "classes": list(data.classes)}


def failure(setup: Setup, image: Tensor) -> str:
    """What `refusing` says of a network, the user's, that fails on an image (1, C, H, W) in ways of its own."""
    return f"model {setup.model!r} fails on an image of {setup.data!r}, {tuple(image.shape[1:])}: {{}}"


def initialised(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network, in eval mode, whose weights follow from the seed alone; the random state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make().eval()
