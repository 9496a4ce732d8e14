"""What the builders of several tasks have in common."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pathex import models
from pathex.data import ImageData, SegmentationData, load, validation_split
from pathex.errors import InvalidInput, PathexWarning, reason

Load = Callable[..., Any]
"""Loads data as ``pathex.data.load`` does, which several runs may want to do once."""

# The statistics of CIFAR, Tiny-ImageNet, ImageNet and CLIP are closer to each other than this.
_FARTHEST_MEAN, _LARGEST_RATIO = 0.1, 1.5


@dataclass(frozen=True)
class Setup:
    """What a task is built from; see :func:`pathex.tasks.build`."""

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
        create = partial(_create, self.model, num_classes, images.in_channels, dict(self.model_options))
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


def part_of(data: Any, part: str, trained: Tensor, held_out: Tensor | None) -> tuple[Any, Tensor | None] | None:
    """The split of ``train``, ``validation`` or ``test`` and which of its images, None for all; None without images."""
    if part == "test":
        return data.test, None
    indices = trained if part == "train" else held_out
    return None if indices is None else (data.train, indices)


def about(data: ImageData | SegmentationData) -> dict[str, Any]:
    """What a result tells about a data set, as plain values."""
    normalisation = {"mean": data.mean.tolist(), "std": data.std.tolist()}
    return {"normalisation": normalisation, "classes": list(data.classes)}


def check_names(task: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Check the names of a task's options."""
    for name in options:
        if name not in known:
            raise InvalidInput(f"unknown option {name!r} of task {task!r}. Known: {', '.join(known)}")


def failure(setup: Setup, image: Tensor, error: Exception) -> InvalidInput:
    """The error about a network that fails on an image (1, C, H, W), which it does in ways of its own."""
    return InvalidInput(
        f"model {setup.model!r} fails on an image of {setup.data!r}, {tuple(image.shape[1:])}: {reason(error)}"
    )


def _create(
    model: str, num_classes: int, in_channels: int, options: dict[str, Any], weights: str | None, seed: int
) -> nn.Module:
    return initialised(partial(models.create, model, num_classes, in_channels, weights=weights, **options), seed)


def initialised(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network, in eval mode, whose weights follow from the seed alone; the random state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make().eval()
