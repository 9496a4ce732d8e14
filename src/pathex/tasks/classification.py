"""Image classification: cross-entropy, measured by the accuracy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.data import ImageData, PruningSet, pruning_set
from pathex.errors import InvalidInput, check_names, refusing
from pathex.tasks.task import Setup, Task, about, failure, part_of, training_rows
from pathex.train import Batches, Feed


@dataclass(frozen=True)
class Classification(Task):
    """A network and the images it is to classify."""

    data: ImageData
    train_indices: Tensor
    validation_indices: Tensor | None

    def pruning_set(self, images_per_class: int, seed: int) -> PruningSet:
        """The class-balanced images that scores see; validation images are never among them."""
        return pruning_set(self.data, images_per_class, seed, indices_from=self.train_indices)

    def feed(
        self, part: str, device: torch.device, batch_size: int, *, share: tuple[int, int] = (0, 1), **options: Any
    ) -> Batches | None:
        """Batches of one part of the data; see `Task.feed`."""
        chosen = part_of(self.data, part, self.train_indices, self.validation_indices)
        if chosen is None:
            return None
        return Feed(self.data, **chosen, device=device, batch_size=batch_size, part=share, **options)

    def loss(self, name: str, label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Cross-entropy (``auto``), or ``mse``: the mean squared distance to the one-hot label."""
        return squared_error if name == "mse" else nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def metric(self, device: torch.device) -> Any:
        """Accuracy over all images."""
        from torchmetrics.classification import MulticlassAccuracy

        return MulticlassAccuracy(self.data.num_classes, average="micro", validate_args=False).to(device)

    def facts(self) -> dict[str, Any]:
        """Normalisation, classes and image size of the data."""
        return {**about(self.data), "image_size": self.data.image_size}


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of outputs (B, K) to labels, (B,) or shares (B, K), averaged over images and outputs."""
    wanted = labels if labels.is_floating_point() else F.one_hot(labels, outputs.shape[1])
    return F.mse_loss(outputs, wanted.to(outputs.dtype))


def build(setup: Setup) -> Classification:
    """Load the data and build the network; see `pathex.tasks.build`."""
    check_names("option of task 'classification':", setup.task_options, ())
    images = setup.images()
    if not isinstance(images, ImageData):
        raise InvalidInput(f"data {setup.data!r} has a label for each pixel, and task 'classification' one an image")
    network, create = setup.networks(images, images.num_classes)
    first = images.normalise(images.train.images(torch.arange(1)))
    with refusing(failure(setup, first)), torch.no_grad():
        outputs = network(first)
    if not isinstance(outputs, Tensor) or outputs.shape != (1, images.num_classes):
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InvalidInput(
            f"model {setup.model!r} gives {shape} for one image of {setup.data!r}; classification needs"
            f" (1, {images.num_classes})"
        )
    trained, held_out = training_rows(images.train.labels, setup.validation, setup.seed)
    return Classification(network, create, first, images, trained, held_out)
