"""Data sets that are part of the package, or of torchvision."""

import importlib.resources
from pathlib import Path

import numpy as np

from pathex.data.archives import read_arrays, splits_of
from pathex.data.downloads import downloading, home
from pathex.data.source import Source

_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"


def load_fashion_mini() -> Source:
    """The 5,000 training and 1,000 test images of Fashion-MNIST that come with the package."""
    resource = importlib.resources.files("pathex.data") / "fashion_mini" / "fashion_mini.npz"
    with resource.open("rb") as file:
        train, test, _ = splits_of(read_arrays(file), "fashion-mini")
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
    with downloading(name, base, remedy):
        train, test = (getattr(datasets, factory)(base, train=train, download=True) for train in (True, False))
    arrays = {"train_images": train.data, "train_labels": np.asarray(train.targets)}
    arrays |= {"test_images": test.data, "test_labels": np.asarray(test.targets)}
    train_split, test_split, _ = splits_of(arrays, name, len(train.classes))
    return Source(name, train_split, test_split, tuple(train.classes))
