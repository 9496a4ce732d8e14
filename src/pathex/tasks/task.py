"""What every task has in common: a network, the images it learns from, a loss and a metric."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pathex import models
from pathex.data import PruningSet
from pathex.errors import InvalidInput
from pathex.train import Batches, Events, Prepare, TrainOptions, evaluate, fit

LOSSES = ("auto", "cross-entropy", "mse")
"""Losses by name; ``auto`` is the task's own."""

_BATCH = 256


@dataclass(frozen=True)
class Task(ABC):
    """A network and what it is to learn.

    Attributes:
        metric_name: Name of the metric, ``accuracy`` or ``miou``; a fraction, higher is better.
        model: The network, on the CPU, in eval mode as long as nothing trains it.
        create: Makes the network anew from a seed, without pre-trained weights.
        example: A normalised image (1, C, H, W).
        data: The data set.
    """

    metric_name: ClassVar[str] = "accuracy"
    model: nn.Module
    create: Callable[[int], nn.Module]
    example: Tensor
    data: Any

    @property
    def unprunable(self) -> tuple[str, ...]:
        """Names of modules or parameters that stay dense in any case."""
        return ()

    @property
    def augment(self) -> str:
        """Name of the usual augmentation of the data."""
        return str(self.data.augment)

    @property
    def augment_options(self) -> Mapping[str, Any]:
        """Options of the usual augmentation."""
        return dict(self.data.augment_options)

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
        """One of :data:`LOSSES` by its name: a function of ``(outputs, targets)`` that gives their mean loss."""

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
        chosen = {**self.augment_options, **options.augment_options}
        return replace(options, augment=self.augment, augment_options=chosen)

    def groups(self, options: TrainOptions) -> list[dict[str, Any]]:
        """Parameters for the optimizer; with ``head_lr`` the head is a group of its own."""
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        if options.head_lr is None:
            return [{"params": list(trained.values())}]
        head = [name for name in models.head_parameters(self.model) if name in trained]
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
        """Train the network; see :func:`pathex.train.fit`. ``augment="auto"`` is the data set's own."""
        options = self.augmented(options)
        device, size, share = fabric.device, options.batch_size, (fabric.global_rank, fabric.world_size)
        change = {"augment": options.augment, "augment_options": options.augment_options}
        feed = self.feed("train", device, size, share=share, **change)
        assert feed is not None
        return fit(
            self.model,
            feed,
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
        )

    def test(self, model: nn.Module, *, fabric: Any, batch_size: int) -> dict[str, Any]:
        """Measure on the test images: ``test_<metric_name>``, a fraction, and ``test_images``."""
        feed = self.feed("test", fabric.device, batch_size, share=(fabric.global_rank, fabric.world_size))
        assert feed is not None
        value = evaluate(model, feed, self.metric(fabric.device))
        return {f"test_{self.metric_name}": value, "test_images": feed.images}
