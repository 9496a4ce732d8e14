"""Image classification: cross-entropy, measured by the accuracy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.data import ImageData, PruningSet, load, pruning_set
from pathex.errors import InvalidInput
from pathex.tasks._building import about, compare_normalisation, failure, part_of, training_rows
from pathex.tasks._task import Load, Task, create_network
from pathex.train import Batches, Feed

__all__ = ["Classification", "build_classification", "squared_error"]


@dataclass(frozen=True)
class Classification(Task):
    """A network and the images it is to classify.

    Attributes:
        model: The network, on the CPU, in eval mode as long as nothing trains it.
        create: Makes the network anew from a seed, without pre-trained weights.
        example: A normalised image (1, C, H, W).
        data: The images.
        train_indices: (n,) training images that are trained on.
        validation_indices: (m,) training images held out; None without validation.
    """

    metric_name: ClassVar[str] = "accuracy"
    model: nn.Module
    create: Callable[[int], nn.Module]
    example: Tensor
    data: ImageData
    train_indices: Tensor
    validation_indices: Tensor | None

    @property
    def augment(self) -> str:  # type: ignore[override]
        """Name of the data set's own augmentation."""
        return self.data.augment

    @property
    def augment_options(self) -> Mapping[str, Any]:  # type: ignore[override]
        """Options of the data set's own augmentation."""
        return self.data.augment_options

    def pruning_set(self, images_per_class: int, seed: int) -> PruningSet:
        """The class-balanced images that scores see; validation images are never among them.

        Args:
            images_per_class: Images of each class.
            seed: Seed of the choice.

        Returns:
            The normalised images, not augmented, with their labels and numbers.
        """
        return pruning_set(self.data, images_per_class, seed, indices_from=self.train_indices)

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
            part: ``train``, ``validation`` or ``test``.
            device: Where the batches are wanted.
            batch_size: Images in a batch, over all processes.
            augment: Name of the augmentation, for the training part.
            augment_options: Its options.
            share: Number of this process and of all of them.

        Returns:
            The batches; None where no validation images were held out.
        """
        chosen = part_of(self.data, part, self.train_indices, self.validation_indices)
        if chosen is None:
            return None
        split, indices = chosen
        return Feed(
            self.data,
            split,
            device=device,
            batch_size=batch_size,
            indices=indices,
            augment=augment,
            augment_options=augment_options,
            part=share,
        )

    def loss(self, name: str, label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss.

        Args:
            name: ``auto`` and ``cross-entropy``; ``mse`` is the mean squared distance to the one-hot label.
            label_smoothing: Label smoothing of the cross-entropy, in [0, 1).

        Returns:
            Mean loss of ``(outputs, labels)``.
        """
        return squared_error if name == "mse" else nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def metric(self, device: torch.device) -> Any:
        """Accuracy over all images.

        Args:
            device: Where outputs and labels are.

        Returns:
            A torchmetrics metric of ``(outputs, labels)``.
        """
        from torchmetrics.classification import MulticlassAccuracy

        return MulticlassAccuracy(self.data.num_classes, average="micro", validate_args=False).to(device)

    def facts(self) -> dict[str, Any]:
        """Normalisation and classes of the data.

        Returns:
            Plain values.
        """
        return about(self.data)


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean squared distance of the outputs to one-hot labels.

    Args:
        outputs: (B, K).
        labels: Classes, int64 (B,).

    Returns:
        Mean over images and outputs.
    """
    return F.mse_loss(outputs, F.one_hot(labels, outputs.shape[1]).to(outputs.dtype))


def build_classification(
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
        task_options: Must be empty: classification has none.
        load_data: Loads the data; None is ``pathex.data.load``.

    Returns:
        The task; nothing is written.

    Raises:
        InvalidInput: If there are options of the task, the network fails on an image of the data set, or does not give
            one number for each class.
    """
    if task_options:
        raise InvalidInput(f"option {next(iter(task_options))!r} of task 'classification': it has no options")
    images = (load_data or load)(data, **(data_options or {}))
    if not isinstance(images, ImageData):
        raise InvalidInput(f"data {data!r} has a label for each pixel; task 'classification' needs one for each image")
    create = partial(create_network, model, images.num_classes, images.in_channels, options=model_options or {})
    network = create(seed=seed, weights=weights)
    first = images.normalise(images.train.images(torch.arange(1)))
    try:
        with torch.no_grad():
            outputs = network(first)
    except Exception as error:  # the network is the user's, and fails in its own ways
        raise InvalidInput(failure(model, data, first, error)) from error
    if not isinstance(outputs, Tensor) or outputs.shape != (1, images.num_classes):
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InvalidInput(
            f"model {model!r} gives {shape} for one image of {data!r}; classification needs (1, {images.num_classes})"
        )
    compare_normalisation(model, weights, model_options or {}, images)
    trained, held_out = training_rows(images.train.labels, validation, seed)
    return Classification(network, lambda other: create(seed=other, weights=None), first, images, trained, held_out)
