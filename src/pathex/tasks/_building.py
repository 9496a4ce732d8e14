"""What the builders of several tasks have in common."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pathex.data import ImageData, validation_split
from pathex.data._pairs import SegmentationData
from pathex.errors import InvalidInput, PathexWarning
from pathex.models import expected_normalisation

__all__ = ["about", "compare_normalisation", "failure", "part_of", "training_rows"]

# The statistics of CIFAR, Tiny-ImageNet, ImageNet and CLIP are closer to each other than this.
_FARTHEST_MEAN, _LARGEST_RATIO = 0.1, 1.5


def training_rows(labels: Tensor, validation: float, seed: int) -> tuple[Tensor, Tensor | None]:
    """Training images, and those of them that are held out.

    Args:
        labels: Class of each image, int64 (N,).
        validation: Fraction held out, in [0, 1).
        seed: Seed of the draw.

    Returns:
        Numbers of the images that are trained on, and of the validation images, None without validation.
    """
    if validation == 0:
        return torch.arange(len(labels)), None
    return validation_split(labels, validation, seed)


def part_of(data: Any, part: str, trained: Tensor, held_out: Tensor | None) -> tuple[Any, Tensor | None] | None:
    """One part of a data set.

    Args:
        data: The data set.
        part: ``train``, ``validation`` or ``test``.
        trained: Training images that are trained on.
        held_out: Validation images; None without validation.

    Returns:
        The split and which of its images, None for all; None where no validation images were held out.
    """
    if part == "test":
        return data.test, None
    indices = trained if part == "train" else held_out
    return None if indices is None else (data.train, indices)


def about(data: ImageData | SegmentationData) -> dict[str, Any]:
    """What a result tells about a data set.

    Args:
        data: The data set.

    Returns:
        ``normalisation`` and ``classes``, as plain values.
    """
    normalisation = {"mean": data.mean.tolist(), "std": data.std.tolist()}
    return {"normalisation": normalisation, "classes": list(data.classes)}


def failure(model: str, data: str, image: Tensor, error: Exception) -> str:
    """The message about a network that fails on an image, which it does in ways of its own.

    Args:
        model: Name of the model.
        data: Name of the data set.
        image: The image (1, C, H, W).
        error: What the network raised.

    Returns:
        One line.
    """
    reason = " ".join(str(error).split())[:200]
    size = tuple(image.shape[1:])
    return f"model {model!r} fails on an image of {data!r}, {size}: {type(error).__name__}: {reason}"


def compare_normalisation(
    model: str, weights: str | None, options: Mapping[str, Any], data: ImageData | SegmentationData
) -> None:
    """Warn if images are normalised quite otherwise than those that pre-trained weights saw.

    Args:
        model: Name of the model.
        weights: Its weights; nothing is compared where their normalisation is not known.
        options: Its options.
        data: The data set.
    """
    try:
        expected = expected_normalisation(model, weights, **options)
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
        f"weights {weights!r} of {model!r} saw images normalised by {wanted}, and data {data.name!r} has {given};"
        " options mean and std of the data set change it",
        PathexWarning,
        stacklevel=3,
    )
