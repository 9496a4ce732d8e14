"""Data sets of Hugging Face: from the hub, or a local folder of parquet or webdataset shards."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pathex.data._decoding import DecodedSplit, check_integers, common_size
from pathex.data._folders import check_sides
from pathex.data._imagenet import imagenet_sides, imagenet_source
from pathex.data._source import IN_MEMORY, Source
from pathex.errors import InvalidInput

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["HubSplit", "load_hub"]

_TEST_SPLITS = ("test", "validation", "val", "valid")
_LABELS = ("label", "labels", "fine_label", "cls", "class", "target")
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")


@dataclass(frozen=True, eq=False)
class HubSplit(DecodedSplit):
    """Labelled images in the rows of a table.

    Attributes:
        table: A ``datasets.Dataset`` with one column of encoded images.
        column: Name of the column.
        rows: Row of each image, int64 (N,).
        place: Where the table comes from, for messages.
    """

    table: Any
    column: str
    rows: Tensor
    place: str

    def open(self, number: int) -> "Image.Image":
        """Open an image.

        Args:
            number: Number of the image.

        Returns:
            The image, not decoded yet.

        Raises:
            OSError: If the row holds none.
        """
        from PIL import Image

        cell = self.table[int(self.rows[number])][self.column] or {}
        if cell.get("bytes"):
            return Image.open(io.BytesIO(cell["bytes"]))
        if cell.get("path"):
            return Image.open(cell["path"])
        raise OSError("no image there")

    def describe(self, number: int) -> str:
        """The row of an image.

        Args:
            number: Number of the image.

        Returns:
            Table and row.
        """
        return f"in row {int(self.rows[number])} of {self.place}"

    def fault(self, number: int) -> str | None:
        """Nothing: the library checks its tables itself, and images are seen when they are decoded.

        Args:
            number: Number of the image.

        Returns:
            None.
        """
        return None

    def subset(self, rows: Tensor, labels: Tensor) -> "HubSplit":
        """Some of the images, under other labels.

        Args:
            rows: Numbers of the images, int64 (M,).
            labels: Their classes, int64 (M,).

        Returns:
            A split of its own.
        """
        return replace(self, labels=labels, rows=self.rows[rows])


def load_hub(
    path: str,
    *,
    root: str | Path | None = None,
    config: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    in_memory: int = IN_MEMORY,
    verify: bool = False,
) -> Source:
    """Load ``hf:NAME`` through the library ``datasets`` (extra ``pathex[hf]``).

    Data sets with ``imagenet`` in their name (and not ``tiny``) are treated like ``imagenet``.

    Args:
        path: Name on the hub, or a local folder of parquet, webdataset or other files that the library knows.
        root: Folder of its cache; None is the library's own.
        config: Configuration of the data set, where it has several.
        train_split: Name of the training split.
        test_split: Name of the test split; None is the first of test, validation, val, valid that has labels.
        image_column: Column of the images; None finds it.
        label_column: Column of the classes (numbers or text); None finds it.
        image_size: Side to which images are brought, in pixels; None is the size of the training images if they are
            square and all of one size, else 224.
        resize: Short side before the centre is cut out, in pixels; None is ``image_size``.
        in_memory: Largest data set that is decoded into memory, in bytes; above it images are decoded when needed.
        verify: Whether images that are decoded when needed are all decoded once beforehand.

    Returns:
        The data set.

    Raises:
        InvalidInput: If the library or the data set is missing, or columns, splits or labels cannot be used.
    """
    name = f"hf:{path}"
    check_integers(name, image_size=(image_size, 1), resize=(resize, 1), in_memory=(in_memory, 0))
    tables = _load(name, path, config, root)
    if train_split not in tables:
        raise InvalidInput(f"data {name!r}: no split {train_split!r}. There: {', '.join(tables)}")
    train = tables[train_split]
    image, label = _image_column(train, image_column, name), _label_column(train, label_column, name)
    names, numbers = _numbered(train, label, name, train_split)
    candidates = [part for part in _TEST_SPLITS if part in tables] if test_split is None else [test_split]
    if not candidates or candidates[0] not in tables:
        wanted = test_split or " or ".join(_TEST_SPLITS)
        raise InvalidInput(f"data {name!r}: no split {wanted} to test on. There: {', '.join(tables)}")
    # Published test splits often carry -1 in place of each label.
    test_part = next((part for part in candidates if _labelled(tables[part], label)), candidates[0])
    if test_part == train_split:
        raise InvalidInput(f"data {name!r}: {test_part!r} cannot be both training and test split")
    _, test_numbers = _numbered(tables[test_part], label, name, test_part, names)
    splits = [
        _split(tables[part], labels, image, f"{name} ({part})")
        for part, labels in ((train_split, numbers), (test_part, test_numbers))
    ]
    lowered = Path(path).name.lower()
    like_imagenet = "imagenet" in lowered and "tiny" not in lowered
    if like_imagenet:
        sides = imagenet_sides(name, image_size, resize)
    else:
        size = common_size(splits[0]) if image_size is None else image_size
        sides = {"image_size": size, "resize": size if resize is None else resize}
        check_sides(name, **sides)
    train_images, test_images = (split.with_sides(**sides) for split in splits)
    source = Source(name, train_images, test_images, names, in_memory=in_memory, verify=verify)
    return replace(imagenet_source(source), in_memory=0) if like_imagenet else source


def _load(name: str, path: str, config: str | None, root: str | Path | None) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise InvalidInput(f"data {name!r} needs the extra 'hf': pip install 'pathex[hf]'") from error
    local = Path(path).expanduser()
    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(
            str(local) if local.exists() else path, config, cache_dir=None if root is None else str(root)
        )
    except Exception as error:  # the library passes on errors of its many readers
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InvalidInput(f"data {name!r} cannot be loaded ({reason})") from error
    finally:
        if not quiet:
            datasets.enable_progress_bars()
    return dict(loaded)


def _image_column(table: Any, wanted: str | None, name: str) -> str:
    import datasets

    images = [column for column, feature in table.features.items() if isinstance(feature, datasets.Image)]
    if wanted is None:
        return _only(images, _IMAGES, "image_column", table, name)
    if wanted not in images:
        shown = ", ".join(images) or "none"
        raise InvalidInput(f"option 'image_column' of data {name!r}: {wanted!r} is no column of images. Known: {shown}")
    return wanted


def _label_column(table: Any, wanted: str | None, name: str) -> str:
    import datasets

    labels = [
        column
        for column, feature in table.features.items()
        if isinstance(feature, datasets.ClassLabel)
        or (isinstance(feature, datasets.Value) and (feature.dtype == "string" or "int" in feature.dtype))
    ]
    if wanted is None:
        certain = [column for column in labels if isinstance(table.features[column], datasets.ClassLabel)]
        usual = [column for column in labels if column in _LABELS]
        return _only(usual or certain, _LABELS, "label_column", table, name)
    if wanted not in labels:
        shown = ", ".join(labels) or "none"
        raise InvalidInput(f"option 'label_column' of data {name!r}: {wanted!r} holds no classes. Known: {shown}")
    return wanted


def _only(found: Sequence[str], usual: Sequence[str], option: str, table: Any, name: str) -> str:
    ordered = [column for column in usual if column in found]
    if len(found) != 1 and not ordered:
        columns = ", ".join(table.features)
        raise InvalidInput(f"data {name!r}: give option {option!r}; the columns are {columns}")
    return ordered[0] if ordered else found[0]


def _labelled(table: Any, column: str) -> bool:
    values = _values(table, column) if column in table.features else np.empty(0, np.int64)
    return bool(len(values)) and (values.dtype.kind not in "iu" or bool((values >= 0).all()))


def _values(table: Any, column: str) -> Any:
    return np.asarray(table.select_columns([column]).with_format("numpy")[:][column])


def _numbered(
    table: Any, column: str, name: str, part: str, names: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], Tensor]:
    """The names of the classes (those of ``names`` where given) and the class of each row."""
    if column not in table.features:
        raise InvalidInput(f"data {name!r}: no column {column!r} in split {part!r}")
    values = _values(table, column)
    if not len(values):
        raise InvalidInput(f"data {name!r}: split {part!r} is empty")
    if names is None:
        names = tuple(getattr(table.features[column], "names", None) or _names(values, name, column))
    if values.dtype.kind in "iu":
        numbers = torch.from_numpy(values.astype(np.int64))
    else:
        known = {label: number for number, label in enumerate(names)}
        numbers = torch.tensor([known.get(str(value), -1) for value in values])
    wrong = ((numbers < 0) | (numbers >= len(names))).nonzero().flatten()
    if len(wrong):
        first = values[int(wrong[0])]
        raise InvalidInput(
            f"data {name!r}: column {column!r} of split {part!r} holds {first!r}, which is none of its {len(names)}"
            f" classes, in {len(wrong)} rows"
        )
    return names, numbers


def _names(values: Any, name: str, column: str) -> list[str]:
    if values.dtype.kind not in "iu":
        return sorted({str(value) for value in values})
    used = np.unique(values)
    if int(used[0]) != 0 or int(used[-1]) != len(used) - 1:
        raise InvalidInput(
            f"data {name!r}: column {column!r} must number the classes from 0 without gaps, got {len(used)} numbers in"
            f" {int(used[0])}..{int(used[-1])}"
        )
    return [str(number) for number in used.tolist()]


def _split(table: Any, labels: Tensor, column: str, place: str) -> HubSplit:
    import datasets

    if column not in table.features:
        raise InvalidInput(f"data {place!r}: no column {column!r}")
    encoded = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return HubSplit(labels, 0, 0, encoded, column, torch.arange(len(labels)), repr(place))
