"""From what a loader found or downloaded to a data set: classes chosen, images checked, statistics taken."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathex.data.images import ImageData, channel_statistics
from pathex.data.selection import choose_classes, validation_split
from pathex.data.splits import ArraySplit, DecodedSplit, decoded, faults
from pathex.errors import InvalidInput, check_integer, refusing

FINISHING = ("classes", "tasks", "task", "task_seed", "mean", "std", "image_size")
"""Options of every data set."""

CUT = "test_fraction=0.2 (--test-fraction 0.2) cuts test images"

IN_MEMORY = 4 * 2**30
"""Largest data set that is decoded into memory, in bytes."""

_LARGEST_SHIFTED = 64
"""Side of images above which a shift by 4 pixels changes little."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the channels of ImageNet, in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Source:
    """What a loader found."""

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
    source: Source, *, mean: Any = None, std: Any = None, image_size: int | None = None, **choice: Any
) -> ImageData:
    """Make a data set of what a loader found, with the options `FINISHING` of ``pathex.data.load``."""
    name = source.name
    if image_size is not None:
        check_integer(f"option 'image_size' of data {name!r}", image_size)
    numbers = choose_classes(source.classes, **choice)
    if numbers != list(range(len(source.classes))):
        source = _restricted(source, numbers)
    source = _checked(source)
    channels, side = source.train.images(torch.tensor([0])).shape[1:3]
    mean, std = source.mean if mean is None else mean, source.std if std is None else std
    means = None if mean is None else channel_numbers(name, "mean", mean, channels)
    stds = None if std is None else channel_numbers(name, "std", std, channels)
    if means is None or stds is None:
        own_means, own_stds = channel_statistics(source.train)
        means, stds = own_means if means is None else means, own_stds if stds is None else stds
    augment = source.augment or ("crop-flip" if side <= _LARGEST_SHIFTED else "flip")
    return ImageData(
        *(name, source.train, source.test, len(source.classes), source.classes, means, stds),
        augment=augment,
        augment_options=source.augment_options,
        size=None if image_size == side else image_size,
    )


def channel_numbers(name: str, option: str, given: Any, channels: int) -> Tensor:
    """A number, or one for each channel, as float32 (C,); ``option`` of data set ``name`` is ``mean`` or ``std``."""
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


def cut_test(split: DecodedSplit, fraction: Any) -> list[DecodedSplit]:
    """Training and test images of a set without test images; the draw is fixed, so that all seeds test on the same."""
    if not isinstance(fraction, float) or not 0 < fraction < 1:
        raise InvalidInput(f"option 'test_fraction' must be a number in (0, 1), got {fraction!r}")
    return [split.subset(rows, split.labels[rows]) for rows in validation_split(split.labels, fraction, 0)]


def _restricted(source: Source, numbers: Sequence[int]) -> Source:
    new = torch.full((len(source.classes),), -1)
    new[list(numbers)] = torch.arange(len(numbers))
    parts = {}
    for part in ("train", "test"):
        split = getattr(source, part)
        labels = new[split.labels]
        rows = (labels >= 0).nonzero().flatten()
        if not len(rows):
            raise InvalidInput(f"the chosen classes have no {part} images")
        parts[part] = split.subset(rows, labels[rows])
    return replace(source, classes=tuple(source.classes[number] for number in numbers), **parts)


def _checked(source: Source) -> Source:
    """Decode what fits into memory, and look at the rest."""
    train, test = source.train, source.test
    if not (isinstance(train, DecodedSplit) and isinstance(test, DecodedSplit)):
        return source
    images = len(train) + len(test)
    if 3 * train.image_size**2 * images <= source.in_memory:
        (train_array, bad_train), (test_array, bad_test) = decoded(train), decoded(test)
        source, bad = replace(source, train=train_array, test=test_array), bad_train + bad_test
    else:
        bad = faults(train, verify=source.verify) + faults(test, verify=source.verify)
    if bad:
        raise InvalidInput(f"{bad[0]}; {len(bad)} of {images} images cannot be read")
    return source


def home(root: str | Path | None) -> Path:
    """The folder of downloads: ``root``, else the environment variable ``PATHEX_ROOT``, else ``~/.cache/pathex``."""
    return Path(root or os.environ.get("PATHEX_ROOT") or Path.home() / ".cache" / "pathex").expanduser()


@contextmanager
def downloading(base: Path, remedy: str) -> Iterator[None]:
    """A download into a folder; one that fails leaves no empty folder and says the remedy."""
    missing = [folder for folder in (base, *base.parents) if not folder.exists()]
    try:
        with refusing(f"cannot be downloaded ({{}}); {remedy}", OSError, RuntimeError):
            base.mkdir(parents=True, exist_ok=True)
            yield
    finally:
        # Innermost first; one that holds anything ends it.
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
