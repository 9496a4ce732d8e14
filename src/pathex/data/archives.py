"""Images in arrays: npz archives with the keys of medmnist, the embedded data set, and CIFAR."""

import importlib.resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathex.data.source import Source, downloading, home
from pathex.data.splits import ArraySplit
from pathex.errors import InvalidInput, check_integer, reason
from pathex.files import MOST_CLASSES, read_npz

_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
_MOST_CHANNELS = 4

_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"


def load_npz(path: str, *, num_classes: int | None = None) -> Source:
    """Load ``npz:PATH``; classes are named by their numbers, and other entries are not read."""
    name, file = f"npz:{path}", Path(path).expanduser()
    if not file.is_file():
        raise InvalidInput("no such file")
    if num_classes is not None:
        check_integer(f"option 'num_classes' of data {name!r}", num_classes, 1, MOST_CLASSES)
    try:
        arrays = read_npz(file, _KEYS)
    except Exception as error:  # damage reaches numpy and zipfile as errors of many kinds
        # Further sentences are numpy's advice to load what is not safe.
        first, _, _ = reason(error).partition(". ")
        raise InvalidInput(f"not a readable npz file ({first})") from error
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise InvalidInput(f"the file lacks {', '.join(missing)}. Needed: {', '.join(_KEYS)}")
    train, test, count = splits_of(arrays, num_classes)
    return Source(name, train, test, tuple(map(str, range(count))))


def splits_of(arrays: dict[str, Any], num_classes: int | None = None) -> tuple[ArraySplit, ArraySplit, int]:
    """Check the four arrays of a data set: training split, test split, number of classes."""
    train, test = (_split(arrays[f"{part}_images"], arrays[f"{part}_labels"], part) for part in ("train", "test"))
    if train.data.shape[1:] != test.data.shape[1:]:
        shapes = f"{tuple(train.data.shape[1:])} and {tuple(test.data.shape[1:])}"
        raise InvalidInput(f"train_images and test_images differ in shape (C, H, W): {shapes}")
    count = _count_classes(train.labels) if num_classes is None else num_classes
    for part, split in (("train", train), ("test", test)):
        largest = int(split.labels.max())
        if largest >= count:
            raise InvalidInput(f"{part}_labels must lie in 0..{count - 1}, got {largest}")
    return train, test, count


def _split(images: Any, labels: Any, part: str) -> ArraySplit:
    split = ArraySplit(_images(images, part), _labels(labels, part))
    if len(split.data) != len(split):
        raise InvalidInput(f"{len(split.data)} {part}_images but {len(split)} {part}_labels")
    return split


def _images(array: Any, part: str) -> Tensor:
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim not in {3, 4}:
        raise InvalidInput(f"{part}_images must be uint8 (N, H, W) or (N, H, W, C), got {_kind(array)}")
    shape = array.shape
    if array.size == 0:
        raise InvalidInput(f"{part}_images is empty, shape {shape}")
    if array.ndim == 3:
        array = array[..., None]
    if array.shape[1] != array.shape[2] or array.shape[3] > _MOST_CHANNELS:
        raise InvalidInput(f"{part}_images must be (N, H, W[, C]), H = W, C at most 4, got {shape}")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _labels(array: Any, part: str) -> Tensor:
    integers = isinstance(array, np.ndarray) and array.dtype.kind in "iu"
    if not integers or not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise InvalidInput(f"{part}_labels must be integers (N,) or (N, 1), got {_kind(array)}")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < 2**63:
        worst = array.min() if int(array.min()) < 0 else array.max()
        raise InvalidInput(f"{part}_labels must be class numbers from 0 on, got {int(worst)}")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))


def _kind(array: Any) -> str:
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__


def _count_classes(labels: Tensor) -> int:
    used = labels.unique()
    if int(used[-1]) != len(used) - 1:
        raise InvalidInput(
            f"train_labels reach {int(used[-1])} but only {len(used)} classes have images;"
            " number the classes from 0 without gaps, or give num_classes"
        )
    return len(used)


def load_fashion_mini() -> Source:
    """The 5,000 training and 1,000 test images of Fashion-MNIST that come with the package."""
    resource = importlib.resources.files("pathex.data") / "fashion_mini" / "fashion_mini.npz"
    with importlib.resources.as_file(resource) as file:
        train, test, _ = splits_of(read_npz(file, _KEYS))
    return Source("fashion-mini", train, test, tuple(_FASHION.split(",")))


def load_cifar10(*, root: str | Path | None = None) -> Source:
    """CIFAR-10; ``root`` is the folder of the download, or the unpacked one inside it."""
    return _cifar("cifar10", "CIFAR10", "cifar-10-python.tar.gz", "cifar-10-batches-py", home(root))


def load_cifar100(*, root: str | Path | None = None) -> Source:
    """CIFAR-100; ``root`` is the folder of the download, or the unpacked one inside it."""
    return _cifar("cifar100", "CIFAR100", "cifar-100-python.tar.gz", "cifar-100-python", home(root))


def _cifar(name: str, factory: str, archive: str, folder: str, base: Path) -> Source:
    from torchvision import datasets

    base = base.parent if base.name == folder else base
    remedy = f"put {archive}, or its folder {folder}, into {str(base)!r}, or use npz:PATH"
    with downloading(base, remedy):
        train, test = (getattr(datasets, factory)(base, train=train, download=True) for train in (True, False))
    arrays = {"train_images": train.data, "train_labels": np.asarray(train.targets)}
    arrays |= {"test_images": test.data, "test_labels": np.asarray(test.targets)}
    train_split, test_split, _ = splits_of(arrays, len(train.classes))
    return Source(name, train_split, test_split, tuple(train.classes))
