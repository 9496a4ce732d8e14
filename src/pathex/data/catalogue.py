"""The names of data sets and how each is loaded."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pathex.data import archives, folders, hub, voc
from pathex.data.images import ImageData
from pathex.data.source import FINISHING, Source, finish
from pathex.errors import InvalidInput, UnknownName, check_names


class Entry(NamedTuple):
    """A loader, whose keyword-only arguments are its options; a line about it; what follows the colon of its name."""

    load: Callable[..., Any]
    line: str
    place: str | None = None


_CLOTHES = "10 classes of clothes, 5,000 + 1,000 greyscale images of 28 pixels, part of the package (no download)"
_IMAGENET = (
    "1,000 classes, 1.28 million + 50,000 photographs in train/WNID and val/WNID of root=FOLDER, no download"
    " (image_size=PIXELS, resize=PIXELS, verify=true)"
)
_VOC = "segmentation: 21 classes, 1,464 + 1,449 colour images with label maps (download; image_size=PIXELS)"
_NPZ = "archive with the keys of medmnist: train_images, train_labels, test_images, test_labels (num_classes=K)"
_FOLDERS = (
    "PATH/train/CLASS/* and PATH/test/CLASS/* or PATH/val/CLASS/*, or PATH/CLASS/* with test_fraction=0.2"
    " (image_size=PIXELS, resize=PIXELS, in_memory=BYTES, verify=true)"
)
_HUB = (
    "Hugging Face data set, or local parquet or webdataset shards; extra pathex[hf] (config=, train_split=,"
    " test_split=, image_column=, label_column=, image_size=, resize=, in_memory=, verify=, test_fraction=)"
)
DATASETS: Mapping[str, Entry] = MappingProxyType(
    {
        "fashion-mini": Entry(archives.load_fashion_mini, _CLOTHES),
        "cifar10": Entry(archives.load_cifar10, "10 classes, 50,000 + 10,000 colour images of 32 pixels (download)"),
        "cifar100": Entry(archives.load_cifar100, "100 classes, 50,000 + 10,000 colour images of 32 pixels (download)"),
        "imagenet": Entry(folders.load_imagenet, _IMAGENET),
        "tiny-imagenet": Entry(
            folders.load_tiny_imagenet, "200 classes, 100,000 + 10,000 colour images of 64 pixels (download)"
        ),
        "voc2012": Entry(voc.load_voc, _VOC),
        "npz": Entry(archives.load_npz, _NPZ, "PATH"),
        "imagefolder": Entry(folders.load_folder, _FOLDERS, "PATH"),
        "hf": Entry(hub.load_hub, _HUB, "NAME_OR_PATH"),
    }
)


def load(name: str, *, root: str | Path | None = None, **options: Any) -> ImageData:
    """Load a data set by name.

    Args:
        name: One of `names`, with a path in place of ``PATH``.
        root: Folder for downloads, used by the sets that are downloaded; None is the environment variable
            ``PATHEX_ROOT``, else ``~/.cache/pathex``.
        **options: Options of this data set (see `describe`), and of every data set: ``classes`` (a list of class
            numbers or names, or a file with one), ``tasks``, ``task`` and ``task_seed`` (one of several disjoint groups
            of classes, see `task_splits`), ``mean`` and ``std`` (a number, or one for each channel, in [0, 1]),
            ``image_size`` (side that networks see, in pixels).

    Returns:
        The data set.

    Raises:
        InvalidInput: If the name, an option or what is found cannot be used.

    Examples:
        >>> data = load("fashion-mini")
        >>> len(data.train), len(data.test), data.num_classes, data.in_channels, data.image_size
        (5000, 1000, 10, 1, 28)
    """
    entry = _entry(name)
    form, colon, path = name.partition(":")
    if colon and not path:
        raise InvalidInput(f"data {name!r} needs a path: {form}:{entry.place}")
    own, known = _own_options(entry.load), option_names(name)
    if root is not None and "root" in own:
        options["root"] = root
    check_names(f"option of data {name!r}:", options, known)
    try:
        found: Any = entry.load(*([path] if colon else []), **{key: options.pop(key) for key in own if key in options})
        data: ImageData = finish(found, **options) if isinstance(found, Source) else found
    except InvalidInput as error:
        if f"data {name!r}" in str(error):  # as of an option
            raise
        raise InvalidInput(f"data {name!r}: {error}") from error
    return data


def option_names(name: str) -> list[str]:
    """Keywords of `load` for a data set. An unknown name raises `pathex.errors.InvalidInput`."""
    loader = _entry(name).load
    return list(dict.fromkeys([*_own_options(loader), *(() if loader is voc.load_voc else FINISHING)]))


def names() -> list[str]:
    """Names of data sets, and the forms that take a path (``npz:PATH``, ...)."""
    return [name if entry.place is None else f"{name}:{entry.place}" for name, entry in DATASETS.items()]


def describe(name: str) -> str:
    """One line about a data set. An unknown name raises `pathex.errors.InvalidInput`."""
    return _entry(name).line


def _own_options(loader: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(loader).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _entry(name: str) -> Entry:
    form, colon, _ = name.partition(":")
    if form not in DATASETS or (DATASETS[form].place is not None) != bool(colon):
        there = ""
        with suppress(OSError, ValueError):  # a text that can be no path
            there = "imagefolder" if Path(name).is_dir() else "npz" * Path(name).is_file()
        if name and there:
            raise InvalidInput(f"unknown data {name!r}: a path stands behind its form, such as '{there}:{name}'")
        raise UnknownName("data", name, names())
    return DATASETS[form]
