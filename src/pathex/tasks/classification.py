"""Image classification: cross-entropy, measured by the accuracy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pathex import models
from pathex.data import ImageData, PruningSet, Split, load, pruning_set, validation_split
from pathex.errors import InvalidInput
from pathex.train import Events, Feed, TrainOptions, evaluate, fit

__all__ = ["Classification", "build_classification"]


@dataclass(frozen=True)
class Classification:
    """A network and the images it is to classify.

    Attributes:
        model: The network, on the CPU, in eval mode as long as nothing trains it.
        data: The images.
        train_indices: (n,) training images that are trained on.
        validation_indices: (m,) training images held out; None without validation.
    """

    model: nn.Module
    data: ImageData
    train_indices: Tensor
    validation_indices: Tensor | None

    def pruning_set(self, images_per_class: int, seed: int) -> PruningSet:
        """The class-balanced images that scores see; validation images are never among them.

        Args:
            images_per_class: Images of each class.
            seed: Seed of the choice.

        Returns:
            The normalised images, not augmented, with their labels and numbers.
        """
        return pruning_set(self.data, images_per_class, seed, indices_from=self.train_indices)

    def train(
        self,
        options: TrainOptions,
        *,
        fabric: Any,
        folder: Path,
        batch_size: int,
        label_smoothing: float = 0.0,
        prepare: Callable[[nn.Module, Optimizer], object] | None = None,
        on_event: Events | None = None,
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train the network; see ``pathex.train.fit`` for files, events and what is returned.

        Args:
            options: Learning rate, epochs, seed; ``augment="auto"`` is the data set's own.
            fabric: The ``lightning_fabric.Fabric`` that decides device and precision.
            folder: Folder of ``last.ckpt`` and ``metrics.jsonl``.
            batch_size: Images in a step.
            label_smoothing: Label smoothing of the cross-entropy, in [0, 1).
            prepare: Called with the network and its optimizer before the first step, to attach a mask.
            on_event: Receives the events of the loop.

        Returns:
            The network as Fabric runs it, and a row for each epoch.
        """
        if options.augment == "auto":
            options = replace(options, augment=self.data.augment)
        held_out = self.validation_indices
        return fit(
            self.model,
            self._feed(self.data.train, fabric.device, batch_size, self.train_indices),
            options,
            fabric=fabric,
            loss=nn.CrossEntropyLoss(label_smoothing=label_smoothing),
            metric=self._accuracy(fabric.device),
            folder=folder,
            validation=None if held_out is None else self._feed(self.data.train, fabric.device, batch_size, held_out),
            prepare=prepare,
            on_event=on_event,
        )

    def test(self, model: nn.Module, *, device: torch.device, batch_size: int) -> float:
        """Accuracy over the test split.

        Args:
            model: The network, on ``device``.
            device: Where to measure.
            batch_size: Images in a forward pass.

        Returns:
            The fraction of the images classified right.
        """
        return evaluate(model, self._feed(self.data.test, device, batch_size), self._accuracy(device))

    def _feed(self, split: Split, device: torch.device, batch_size: int, indices: Tensor | None = None) -> Feed:
        return Feed(self.data, split, device=device, batch_size=batch_size, indices=indices)

    def _accuracy(self, device: torch.device) -> Any:
        from torchmetrics.classification import MulticlassAccuracy

        return MulticlassAccuracy(self.data.num_classes, average="micro", validate_args=False).to(device)


def build_classification(
    model: str,
    data: str,
    *,
    seed: int,
    weights: str | None = None,
    validation: float = 0.0,
    model_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
) -> Classification:
    """Load the data and build the network.

    The initial weights follow from ``seed`` alone: the random state before the call plays no part and is restored.

    Args:
        model: Name of a model.
        data: Name of a data set.
        seed: Seed of initialization and of the validation split.
        weights: Weights to start from; None is random initialization.
        validation: Fraction of the training images held out, in [0, 1).
        model_options: Options of the model's factory.
        data_options: Options of the data set.

    Returns:
        The task; nothing is written.

    Raises:
        InvalidInput: If the network fails on an image of the data set, or does not give one number for each class.
    """
    images = load(data, **(data_options or {}))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = models.create(
            model, images.num_classes, images.in_channels, weights=weights, **(model_options or {})
        ).eval()
    first = images.normalise(images.train.images(torch.arange(1)))
    try:
        with torch.no_grad():
            outputs = network(first)
    except Exception as error:  # the network is the user's, and fails in its own ways
        reason = " ".join(str(error).split())[:200]
        raise InvalidInput(
            f"model {model!r} fails on an image of {data!r}, {tuple(first.shape[1:])}: {type(error).__name__}: {reason}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.shape != (1, images.num_classes):
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InvalidInput(
            f"model {model!r} gives {shape} for one image of {data!r}; classification needs (1, {images.num_classes})"
        )
    if validation == 0:
        return Classification(network, images, torch.arange(len(images.train)), None)
    return Classification(network, images, *validation_split(images.train.labels, validation, seed))
