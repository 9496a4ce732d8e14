"""From what a loader found to a data set: classes chosen, images checked, statistics taken."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pathex.data._classes import choose_classes
from pathex.data._decoding import DecodedSplit, check_integers, faults
from pathex.data._images import ArraySplit, ImageData, assemble
from pathex.errors import InvalidInput

__all__ = ["FINISHING", "IN_MEMORY", "Source", "channel_numbers", "finish"]

FINISHING = ("classes", "tasks", "task", "task_seed", "mean", "std", "image_size")
"""Options of every data set."""

IN_MEMORY = 4 * 2**30
"""Largest data set that is decoded into memory, in bytes."""


@dataclass(frozen=True, eq=False)
class Source:
    """What a loader found.

    Attributes:
        name: Name of the data set.
        train: Training images.
        test: Test images.
        classes: Names of the classes.
        mean: Mean of each channel, in [0, 1]; None is that of the training images.
        std: Standard deviation of each channel; None likewise.
        augment: Usual augmentation; None is by the size.
        augment_options: Its options.
        in_memory: Largest size in bytes up to which images that need decoding are decoded at once.
        verify: Whether images above that are decoded once to see whether they can be.
    """

    name: str
    train: ArraySplit | DecodedSplit
    test: ArraySplit | DecodedSplit
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: str | None = None
    augment_options: Mapping[str, float] = field(default_factory=dict)
    in_memory: int = IN_MEMORY
    verify: bool = False


def finish(
    source: Source,
    *,
    mean: Any = None,
    std: Any = None,
    image_size: int | None = None,
    **choice: Any,
) -> ImageData:
    """Make a data set of what a loader found.

    Args:
        source: What was found.
        mean: Mean of each channel, or of all, in [0, 1]; None is the data set's own.
        std: Standard deviation of each channel, or of all; None is the data set's own.
        image_size: Side to which the images are brought on their way into the network; None leaves it.
        **choice: ``classes``, ``tasks``, ``task``, ``task_seed``: see ``choose_classes``.

    Returns:
        The data set.

    Raises:
        InvalidInput: If an option cannot be used, or an image cannot be read.
    """
    check_integers(source.name, image_size=(image_size, 1))
    try:
        numbers = choose_classes(source.classes, **choice)
    except InvalidInput as error:
        raise InvalidInput(f"data {source.name!r}: {error}") from error
    if numbers != list(range(len(source.classes))):
        source = _restricted(source, numbers)
    source = _checked(source)
    channels = source.train.images(torch.tensor([0])).shape[1]
    wanted = {"mean": source.mean if mean is None else mean, "std": source.std if std is None else std}
    given = {
        option: None if value is None else channel_numbers(source.name, option, value, channels)
        for option, value in wanted.items()
    }
    data = assemble(source.name, source.train, source.test, source.classes, **given)
    if source.augment is not None:
        data = replace(data, augment=source.augment, augment_options=source.augment_options)
    return data if image_size in {None, data.image_size} else replace(data, size=image_size)


def _restricted(source: Source, numbers: Sequence[int]) -> Source:
    new = torch.full((len(source.classes),), -1)
    new[list(numbers)] = torch.arange(len(numbers))
    parts = {}
    for part in ("train", "test"):
        split = getattr(source, part)
        labels = new[split.labels]
        rows = (labels >= 0).nonzero().flatten()
        if not len(rows):
            raise InvalidInput(f"data {source.name!r}: the chosen classes have no {part} images")
        parts[part] = split.subset(rows, labels[rows])
    return replace(source, classes=tuple(source.classes[number] for number in numbers), **parts)


def _checked(source: Source) -> Source:
    """Decode what fits into memory, and look at the rest."""
    train, test = source.train, source.test
    if not (isinstance(train, DecodedSplit) and isinstance(test, DecodedSplit)):
        return source
    images = len(train) + len(test)
    if 3 * train.image_size**2 * images <= source.in_memory:
        (held_train, bad_train), (held_test, bad_test) = train.decoded(), test.decoded()
        source, bad = replace(source, train=held_train, test=held_test), bad_train + bad_test
    else:
        bad = faults(train, verify=source.verify) + faults(test, verify=source.verify)
    if bad:
        raise InvalidInput(f"data {source.name!r}: {bad[0]}; {len(bad)} of {images} images cannot be read")
    return source


def channel_numbers(name: str, option: str, given: Any, channels: int) -> Tensor:
    """Check the mean or the standard deviation of channels.

    Args:
        name: Name of the data set, for messages.
        option: ``mean`` or ``std``.
        given: A number, or a list of one for each channel.
        channels: Number of channels.

    Returns:
        The numbers, float32 (C,).

    Raises:
        InvalidInput: If there is not one for each channel, or one is out of range.
    """
    values = list(given) if isinstance(given, list | tuple) else [given] * channels
    least = 0.0 if option == "mean" else 1e-6
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if not len(numbers) == len(values) == channels or not all(
        math.isfinite(number) and least <= number <= 1 for number in numbers
    ):
        raise InvalidInput(
            f"option {option!r} of data {name!r} must be a number for each of the {channels} channels, in"
            f" [{least:g}, 1], got {given!r}"
        )
    return torch.tensor(numbers, dtype=torch.float32)
