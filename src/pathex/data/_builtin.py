"""Data sets with a name of their own."""

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from pathex.data._archives import read_arrays, splits_of
from pathex.data._downloads import home, leaving_no_folder
from pathex.data._source import Source
from pathex.errors import InvalidInput

__all__ = ["load_cifar", "load_fashion_mini"]

_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_CIFAR: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "cifar10": ("CIFAR10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
        "cifar100": ("CIFAR100", "cifar-100-python.tar.gz", "cifar-100-python"),
    }
)


def load_fashion_mini() -> Source:
    """Load the 5,000 training and 1,000 test images of Fashion-MNIST that come with the package.

    Returns:
        The data set, greyscale, 28 x 28 pixels.
    """
    resource = importlib.resources.files("pathex.data") / "fashion_mini" / "fashion_mini.npz"
    with resource.open("rb") as file:
        train, test, _ = splits_of(read_arrays(file), "fashion-mini")
    return Source("fashion-mini", train, test, tuple(_FASHION.split(",")))


def load_cifar(name: str, *, root: str | Path | None = None) -> Source:
    """Load CIFAR through torchvision, which downloads it once.

    Args:
        name: ``cifar10`` or ``cifar100``.
        root: Folder of the download, or the unpacked one inside it; None is the environment variable ``PATHEX_ROOT``,
            else ``~/.cache/pathex``.

    Returns:
        The data set, colour, 32 x 32 pixels.

    Raises:
        InvalidInput: If the files are neither there nor to be had.
    """
    from torchvision import datasets

    factory, archive, folder = _CIFAR[name]
    base = home(root)
    base = base.parent if base.name == folder else base
    try:
        with leaving_no_folder(base):
            train = getattr(datasets, factory)(base, train=True, download=True)
            test = getattr(datasets, factory)(base, train=False, download=True)
    except (OSError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InvalidInput(
            f"data {name!r} cannot be downloaded ({reason}); put {archive}, or its folder {folder}, into {str(base)!r},"
            " or use npz:PATH"
        ) from error
    arrays = {"train_images": train.data, "train_labels": np.asarray(train.targets)}
    arrays |= {"test_images": test.data, "test_labels": np.asarray(test.targets)}
    train_split, test_split, _ = splits_of(arrays, name, len(train.classes))
    return Source(name, train_split, test_split, tuple(train.classes))
