"""Images in npz archives, with the keys of medmnist."""

from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from pathex.data._images import ArraySplit
from pathex.data._source import Source
from pathex.errors import InvalidInput

__all__ = ["load_npz", "read_arrays", "splits_of"]

_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
_MOST_CHANNELS = 4


def load_npz(path: str, *, num_classes: int | None = None) -> Source:
    """Load ``npz:PATH``.

    Args:
        path: An npz file with ``train_images`` and ``test_images``, uint8 (N, H, W) or (N, H, W, C) with H = W, and
            ``train_labels`` and ``test_labels``, integers (N,) or (N, 1). Other entries are not read.
        num_classes: Number of classes; None is the largest training label plus one.

    Returns:
        The data set; classes are named by their numbers.

    Raises:
        InvalidInput: If the file or anything in it cannot be used.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InvalidInput(f"data 'npz:{path}': no such file")
    if num_classes is not None and (
        isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1
    ):
        raise InvalidInput(f"option 'num_classes' of data 'npz:{path}' must be a positive integer, got {num_classes!r}")
    train, test, count = splits_of(_read(file, f"npz:{path}"), f"npz:{path}", num_classes)
    return Source(f"npz:{path}", train, test, tuple(map(str, range(count))))


def splits_of(arrays: dict[str, Any], name: str, num_classes: int | None = None) -> tuple[ArraySplit, ArraySplit, int]:
    """Check arrays and turn them into splits.

    Args:
        arrays: The four arrays.
        name: Name of the data set, for messages.
        num_classes: Number of classes; None is the largest training label plus one.

    Returns:
        Training split, test split, number of classes.

    Raises:
        InvalidInput: If shapes, types or labels cannot be used.
    """
    splits = [
        ArraySplit(_images(arrays[f"{part}_images"], name, part), _labels(arrays[f"{part}_labels"], name, part))
        for part in ("train", "test")
    ]
    for part, split in zip(("train", "test"), splits, strict=True):
        if len(split.data) != len(split.labels):
            raise InvalidInput(f"data {name!r}: {len(split.data)} {part}_images but {len(split.labels)} {part}_labels")
    train, test = splits
    if train.data.shape[1:] != test.data.shape[1:]:
        shapes = f"{tuple(train.data.shape[1:])} and {tuple(test.data.shape[1:])}"
        raise InvalidInput(f"data {name!r}: train_images and test_images differ in shape (C, H, W): {shapes}")
    count = _count_classes(train.labels, name) if num_classes is None else num_classes
    for part, split in zip(("train", "test"), splits, strict=True):
        if int(split.labels.max()) >= count:
            raise InvalidInput(
                f"data {name!r}: {part}_labels must lie in 0..{count - 1}, got {int(split.labels.max())}"
            )
    return train, test, count


def read_arrays(file: IO[bytes]) -> dict[str, Any]:
    """Read the four arrays of an archive, without pickles.

    Args:
        file: The archive, open for reading.

    Returns:
        The arrays that are there, by key.

    Raises:
        ValueError: If the file is no archive, or holds pickled objects.
    """
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("a single array, not an archive")
    return {key: archive[key] for key in _KEYS if key in archive.files}


def _read(file: Path, name: str) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            arrays = read_arrays(stream)
    except Exception as error:  # damage reaches numpy and zipfile as errors of many kinds
        # Further sentences are numpy's advice to load what is not safe.
        reason = " ".join(str(error).split()).partition(". ")[0][:200]
        raise InvalidInput(f"data {name!r}: not a readable npz file ({type(error).__name__}: {reason})") from error
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise InvalidInput(f"data {name!r}: the file lacks {', '.join(missing)}. Needed: {', '.join(_KEYS)}")
    return arrays


def _images(array: Any, name: str, part: str) -> Tensor:
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim not in {3, 4}:
        kind = _kind(array)
        raise InvalidInput(f"data {name!r}: {part}_images must be uint8 (N, H, W) or (N, H, W, C), got {kind}")
    shape = array.shape
    if array.size == 0:
        raise InvalidInput(f"data {name!r}: {part}_images is empty, shape {shape}")
    if array.ndim == 3:
        array = array[..., None]
    if array.shape[1] != array.shape[2] or array.shape[3] > _MOST_CHANNELS:
        raise InvalidInput(f"data {name!r}: {part}_images must be (N, H, W[, C]), H = W, C at most 4, got {shape}")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _labels(array: Any, name: str, part: str) -> Tensor:
    integers = isinstance(array, np.ndarray) and array.dtype.kind in "iu"
    if not integers or not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise InvalidInput(f"data {name!r}: {part}_labels must be integers (N,) or (N, 1), got {_kind(array)}")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < 2**63:
        worst = array.min() if int(array.min()) < 0 else array.max()
        raise InvalidInput(f"data {name!r}: {part}_labels must be class numbers from 0 on, got {int(worst)}")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))


def _kind(array: Any) -> str:
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__


def _count_classes(labels: Tensor, name: str) -> int:
    used = labels.unique()
    if int(used[-1]) != len(used) - 1:
        raise InvalidInput(
            f"data {name!r}: train_labels reach {int(used[-1])} but only {len(used)} classes have images;"
            " number the classes from 0 without gaps, or give num_classes"
        )
    return len(used)
