"""Data sets of Hugging Face: from the hub, or a local folder of parquet or webdataset shards."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathex.data.folders import imagenet_source
from pathex.data.source import CUT, IN_MEMORY, Source, cut_test
from pathex.data.splits import DecodedSplit, Table, with_sides
from pathex.errors import InvalidInput, check_integer, refusing

_FILES = (".parquet", ".arrow", ".tar", ".csv", ".json", ".jsonl", ".zip")
_TEST_SPLITS = ("test", "validation", "val", "valid")
# Usual names of the column that an option names, the type that tells it, and what is said about another.
_COLUMNS = {
    "image_column": (("image", "img", "jpg", "jpeg", "png", "webp"), "Image", "is no column of images"),
    "label_column": (
        ("label", "labels", "fine_label", "cls", "class", "target"), "ClassLabel", "holds no classes",
    ),
}  # fmt: skip


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
    test_fraction: float | None = None,
) -> Source:
    """Load ``hf:NAME``; what has ``imagenet`` in its name (and not ``tiny``) is treated like ``imagenet``."""
    name = f"hf:{path}"
    check_integer(f"option 'in_memory' of data {name!r}", in_memory, 0)
    tables = _load(path, config, root)
    if train_split not in tables:
        raise InvalidInput(f"no split {train_split!r}. There: {', '.join(tables)}")
    image = _column(tables[train_split], "image_column", image_column)
    label = _column(tables[train_split], "label_column", label_column)
    parts = [train_split]
    if test_fraction is None:
        parts.append(_test_split(tables, train_split, test_split, label))
    elif test_split is not None:
        raise InvalidInput(f"test_fraction is {test_fraction!r} and test_split {test_split!r}; leave out one")
    names, splits = tuple[str, ...](), []
    for part in parts:
        names, labels = _numbered(tables[part], label, part, names)
        splits.append(_split(tables[part], labels, image, f"{name} ({part})", _folders(path, root)))
    splits = splits if test_fraction is None else cut_test(splits[0], test_fraction)
    lowered = Path(path).name.lower()
    like_imagenet = "imagenet" in lowered and "tiny" not in lowered
    train, test = with_sides(name, splits, image_size=image_size, resize=resize, imagenet=like_imagenet)
    source = Source(name, train, test, names, in_memory=in_memory, verify=verify)
    return imagenet_source(source) if like_imagenet else source


def _load(path: str, config: str | None, root: str | Path | None) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise InvalidInput("needs the extra 'hf': pip install 'pathex[hf]'") from error
    local = Path(path).expanduser()
    if not local.exists() and (path.startswith((".", "~")) or local.is_absolute() or local.suffix in _FILES):
        raise InvalidInput("no such file or folder")  # the hub is asked again and again
    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with refusing("cannot be loaded ({})"):  # the library passes on errors of its many readers
            place = str(local) if local.exists() else path
            return dict(datasets.load_dataset(place, config, cache_dir=None if root is None else str(root)))
    finally:
        if not quiet:
            datasets.enable_progress_bars()


def _folders(path: str, root: str | Path | None) -> tuple[Path, ...]:
    """Where the files of a data set may be: a local one's own folder, and that of what is downloaded or unpacked."""
    import datasets

    places = (Path(path).expanduser(), Path(root or datasets.config.HF_CACHE_HOME).expanduser())
    return tuple(Path(os.path.normpath(place.absolute())) for place in places if place.is_dir())


def _column(table: Any, option: str, wanted: str | None) -> str:
    """The column of the images or of the classes: the wanted one, or what types and usual names tell."""
    import datasets

    usual, kind, what = _COLUMNS[option]
    certain = [column for column, feature in table.features.items() if isinstance(feature, getattr(datasets, kind))]
    fitting = certain
    if kind == "ClassLabel":
        plain = [column for column, feature in table.features.items() if isinstance(feature, datasets.Value)]
        fitting = [*certain, *(column for column in plain if re.search("string|int", table.features[column].dtype))]
    if wanted is not None and wanted not in fitting:
        raise InvalidInput(f"option {option!r}: {wanted!r} {what}. Known: {', '.join(fitting) or 'none'}")
    found = [wanted] if wanted is not None else [column for column in usual if column in fitting] or certain
    if (len(found) > 1 and found[0] not in usual) or not found:
        raise InvalidInput(f"give option {option!r}; the columns are {', '.join(table.features)}")
    return found[0]


def _test_split(tables: dict[str, Any], train: str, wanted: str | None, label: str) -> str:
    candidates = [part for part in _TEST_SPLITS if part in tables] if wanted is None else [wanted]
    if not candidates or candidates[0] not in tables:
        sought = wanted or " or ".join(_TEST_SPLITS)
        raise InvalidInput(f"no split {sought} to test on. There: {', '.join(tables)}; {CUT}")
    # Published test splits often carry -1 in place of each label.
    chosen = next((part for part in candidates if _labelled(tables[part], label)), candidates[0])
    if chosen == train:
        raise InvalidInput(f"{chosen!r} cannot be both training and test split")
    return chosen


def _labelled(table: Any, column: str) -> bool:
    values = _values(table, column) if column in table.features else np.empty(0, np.int64)
    named = values.dtype.kind not in "iu"
    return bool(len(values)) and not _nulls(table, column) and (named or bool((values >= 0).all()))


def _values(table: Any, column: str) -> Any:
    return np.asarray(table.select_columns([column]).with_format("numpy")[:][column])


def _nulls(table: Any, column: str) -> int:
    return int(table.select_columns([column]).with_format("arrow")[:][column].null_count)


def _numbered(table: Any, column: str, part: str, names: tuple[str, ...]) -> tuple[tuple[str, ...], Tensor]:
    """The names of the classes (those of ``names`` where there are any) and the class of each row."""
    if column not in table.features:
        raise InvalidInput(f"no column {column!r} in split {part!r}")
    values = _values(table, column)
    if not len(values):
        raise InvalidInput(f"split {part!r} is empty")
    if empty := _nulls(table, column):
        raise InvalidInput(f"column {column!r} of split {part!r} is null in {empty} of {len(values)} rows")
    if not names:
        names = tuple(getattr(table.features[column], "names", None) or _names(values, column))
    if values.dtype.kind in "iu":
        numbers = torch.from_numpy(values.astype(np.int64))
    else:
        known = {label: number for number, label in enumerate(names)}
        numbers = torch.tensor([known.get(str(value), -1) for value in values])
    wrong = ((numbers < 0) | (numbers >= len(names))).nonzero().flatten()
    if len(wrong):
        what = f"{values[int(wrong[0])]!r}, which is none of its {len(names)} classes, in {len(wrong)} rows"
        raise InvalidInput(f"column {column!r} of split {part!r} holds {what}")
    return names, numbers


def _names(values: Any, column: str) -> Sequence[str]:
    if values.dtype.kind not in "iu":
        return sorted({str(value) for value in values})
    used = np.unique(values)
    if int(used[0]) != 0 or int(used[-1]) != len(used) - 1:
        found = f"{len(used)} numbers in {int(used[0])}..{int(used[-1])}"
        raise InvalidInput(f"column {column!r} must number the classes from 0 without gaps, got {found}")
    return [str(number) for number in used.tolist()]


def _split(table: Any, labels: Tensor, column: str, place: str, folders: tuple[Path, ...]) -> DecodedSplit:
    import datasets

    if column not in table.features:
        raise InvalidInput(f"no column {column!r} in {place!r}")
    encoded = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return DecodedSplit(labels, Table(encoded, column, place, folders), torch.arange(len(labels)))
