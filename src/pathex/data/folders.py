"""Images in folders, one folder for each class."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pathex.data.decoder import DecodedSplit, Files, with_sides
from pathex.data.source import IN_MEMORY, Source
from pathex.errors import InvalidInput, check_integer


def load_folder(
    path: str,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    in_memory: int = IN_MEMORY,
    verify: bool = False,
) -> Source:
    """Load ``imagefolder:PATH``; classes are the folders of ``train`` in alphabetical order."""
    name = f"imagefolder:{path}"
    root = Path(path).expanduser()
    if not (root / "train").is_dir():
        raise InvalidInput(f"data {name!r}: no folder 'train' there. Needed: train/CLASS/* and test/CLASS/* (or val)")
    test_root = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if test_root is None:
        raise InvalidInput(f"data {name!r}: neither folder 'test' nor 'val' there")
    check_integer(f"option 'in_memory' of data {name!r}", in_memory, 0)
    classes = class_folders(root / "train", name)
    train, test = list_images(root / "train", classes, name), list_images(test_root, classes, name)
    check_filled(train, classes, root / "train", name)
    train, test = with_sides(name, (train, test), image_size=image_size, resize=resize)
    return Source(name, train, test, classes, in_memory=in_memory, verify=verify)


def class_folders(folder: Path, name: str) -> tuple[str, ...]:
    """Names of the classes of a folder of data set ``name`` in alphabetical order."""
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not classes:
        raise InvalidInput(f"data {name!r}: no folder of a class below {str(folder)!r}. Needed: CLASS/*")
    return classes


def list_images(folder: Path, classes: Sequence[str], name: str) -> DecodedSplit:
    """The images below the folders of the classes, in order of class and path; their sizes are still to be set."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    numbers = {label: number for number, label in enumerate(classes)}
    unknown = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name not in numbers)
    if unknown:
        what = f"class {unknown[0]!r} of {folder.name!r} is no class of 'train' ({len(unknown)} such classes)"
        raise InvalidInput(f"data {name!r}: {what}")
    found = make_dataset(folder, numbers, IMG_EXTENSIONS, allow_empty=True)
    if not found:
        raise InvalidInput(f"data {name!r}: no images below {folder.name!r} ({' '.join(IMG_EXTENSIONS)})")
    return files_split(found)


def check_filled(split: DecodedSplit, classes: Sequence[str], place: Path, name: str) -> None:
    """Refuse a split, listed at a place, that shows nothing of a class."""
    empty = (split.labels.bincount(minlength=len(classes)) == 0).nonzero().flatten().tolist()
    if empty:
        count = f"{len(empty)} of {len(classes)} classes have none"
        raise InvalidInput(f"data {name!r}: class {classes[empty[0]]!r} has no image in {str(place)!r}; {count}")


def files_split(found: Sequence[tuple[str, int]]) -> DecodedSplit:
    """A split of files with their classes."""
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    return DecodedSplit(labels, Files(tuple(file for file, _ in found)), torch.arange(len(found)))
