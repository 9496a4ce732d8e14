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
from pathex.data._hub import load_hub
from pathex.data._imagenet import load_imagenet, load_tiny_imagenet
from pathex.data._images import ImageData
from pathex.data._source import FINISHING, Source, finish
from pathex.data._voc import load_voc
from pathex.errors import InvalidInput, UnknownName

__all__ = ["describe", "load", "names", "option_names"]

_Loader = Callable[..., Any]

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
        "tiny-imagenet": (
            load_tiny_imagenet,
            "200 classes, 100,000 + 10,000 colour images of 64 pixels (download)",
        ),
        "imagenet": (
            load_imagenet,
            "1,000 classes, 1.28 million + 50,000 photographs in train/WNID and val/WNID of root=FOLDER, no download"
            " (image_size=PIXELS, resize=PIXELS, verify=true)",
        ),
        "voc2012": (
            load_voc,
            "segmentation: 21 classes, 1,464 + 1,449 colour images with label maps (download; image_size=PIXELS)",
        ),
    }
)
_FORMS: Mapping[str, tuple[_Loader, str, str]] = MappingProxyType(
    {
        "imagefolder": (
            load_folder,
            "PATH/train/CLASS/* and PATH/test/CLASS/* or PATH/val/CLASS/* (image_size=PIXELS, resize=PIXELS,"
            " in_memory=BYTES, verify=true)",
            "PATH",
        ),
        "npz": (
            load_npz,
            "archive with the keys of medmnist: train_images, train_labels, test_images, test_labels (num_classes=K)",
            "PATH",
        ),
        "hf": (
            load_hub,
            "Hugging Face data set, or local parquet or webdataset shards; extra pathex[hf] (config=, train_split=,"
            " test_split=, image_column=, label_column=, image_size=, resize=, in_memory=, verify=)",
            "NAME_OR_PATH",
        ),
    }
)


def load(name: str, *, root: str | Path | None = None, **options: Any) -> ImageData:
    """Load a data set by name.

    Args:
        name: One of :func:`names`, with a path in place of ``PATH``.
        root: Folder for downloads, used by the sets that are downloaded; None is the environment variable
            ``PATHEX_ROOT``, else ``~/.cache/pathex``.
        **options: Options of this data set (see :func:`describe`), and of every data set: ``classes`` (a list of class
            numbers or names, or a file with one), ``tasks``, ``task`` and ``task_seed`` (one of several disjoint groups
            of classes, see :func:`task_splits`), ``mean`` and ``std`` (a number, or one for each channel, in [0, 1]),
            ``image_size`` (side that networks see, in pixels).

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
        _entry(name)
        raise InvalidInput(f"data {name!r} needs a path: {form}:{_FORMS[form][2]}")
    loader, _ = _entry(name)
    allowed, known = _own_options(loader), option_names(name)
    if root is not None and "root" in allowed:
        options["root"] = root
    for option in options:
        if option not in known:
            raise InvalidInput(f"unknown option {option!r} of data {name!r}. Known: {', '.join(known)}")
    own = {option: value for option, value in options.items() if option in allowed}
    rest = {option: value for option, value in options.items() if option not in allowed}
    loaded: Any = loader(path, **own) if colon else loader(**own)
    data: ImageData = finish(loaded, **rest) if isinstance(loaded, Source) else loaded
    return data


def option_names(name: str) -> list[str]:
    """Options of a data set. An unknown name raises :class:`~pathex.errors.InvalidInput`.

    Args:
        name: One of :func:`names`, with or without a path of its own.

    Returns:
        Names of keywords of :func:`load`.
    """
    loader, _ = _entry(name)
    return list(dict.fromkeys([*_own_options(loader), *(() if loader is load_voc else FINISHING)]))


def _own_options(loader: _Loader) -> list[str]:
    parameters = inspect.signature(loader).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def names() -> list[str]:
    """Names of data sets, and the forms that take a path.

    Returns:
        ``fashion-mini``, ..., ``imagefolder:PATH``, ``npz:PATH``, ``hf:NAME_OR_PATH``.
    """
    return [*_SETS, *(f"{form}:{place}" for form, (_, _, place) in _FORMS.items())]


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
    if form not in (_FORMS if colon else _SETS):
        raise UnknownName("data", name, names())
    return _FORMS[form][:2] if colon else _SETS[form]
