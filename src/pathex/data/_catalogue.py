"""The names of data sets and how each is loaded."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pathex.data._archives import load_npz
from pathex.data._builtin import load_cifar, load_fashion_mini
from pathex.data._folders import load_folder
from pathex.data._images import ImageData
from pathex.errors import InvalidInput, UnknownName

__all__ = ["describe", "load", "names"]

_Loader = Callable[..., ImageData]

_SETS: Mapping[str, tuple[_Loader, str]] = MappingProxyType(
    {
        "fashion-mini": (
            load_fashion_mini,
            "10 classes of clothes, 5,000 + 1,000 greyscale images of 28 pixels, part of the package (no download)",
        ),
        "cifar10": (
            partial(load_cifar, "cifar10"),
            "10 classes, 50,000 + 10,000 colour images of 32 pixels (download)",
        ),
        "cifar100": (
            partial(load_cifar, "cifar100"),
            "100 classes, 50,000 + 10,000 colour images of 32 pixels (download)",
        ),
    }
)
_FORMS: Mapping[str, tuple[_Loader, str]] = MappingProxyType(
    {
        "imagefolder": (
            load_folder,
            "PATH/train/CLASS/* and PATH/test/CLASS/* or PATH/val/CLASS/* (image_size=PIXELS, in_memory=BYTES)",
        ),
        "npz": (
            load_npz,
            "archive with the keys of medmnist: train_images, train_labels, test_images, test_labels (num_classes=K)",
        ),
    }
)


def load(name: str, *, root: str | Path | None = None, **options: Any) -> ImageData:
    """Load a data set by name.

    Args:
        name: One of :func:`names`, with a path in place of ``PATH``.
        root: Folder for downloads, used by the sets that are downloaded; None is the environment variable
            ``PATHEX_ROOT``, else ``~/.cache/pathex``.
        **options: Options of this data set, such as ``image_size`` (see :func:`describe`).

    Returns:
        The data set.

    Raises:
        InvalidInput: If the name, an option or what is found cannot be used.

    Example:
        >>> data = load("fashion-mini")
        >>> len(data.train), len(data.test), data.num_classes, data.in_channels, data.image_size
        (5000, 1000, 10, 1, 28)
    """
    form, colon, path = name.partition(":")
    if colon and not path:
        raise InvalidInput(f"data {name!r} needs a path: {form}:PATH")
    loader, _ = _entry(name)
    parameters = inspect.signature(loader).parameters.values()
    allowed = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    if root is not None and "root" in allowed:
        options["root"] = root
    for option in options:
        if option not in allowed:
            known = ", ".join(allowed) or "none"
            raise InvalidInput(f"unknown option {option!r} of data {name!r}. Known: {known}")
    return loader(path, **options) if colon else loader(**options)


def names() -> list[str]:
    """Names of data sets, and the forms that take a path.

    Returns:
        ``fashion-mini``, ..., ``imagefolder:PATH``, ``npz:PATH``.
    """
    return [*_SETS, *(f"{form}:PATH" for form in _FORMS)]


def describe(name: str) -> str:
    """One line about a data set. An unknown name raises :class:`~pathex.errors.InvalidInput`.

    Args:
        name: One of :func:`names`, with or without a path of its own.

    Returns:
        The line.
    """
    return _entry(name)[1]


def _entry(name: str) -> tuple[_Loader, str]:
    form, colon, _ = name.partition(":")
    table = _FORMS if colon else _SETS
    if form not in table:
        raise UnknownName("data", name, names())
    return table[form]
