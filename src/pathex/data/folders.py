"""Images in folders, one folder for each class; ImageNet and Tiny-ImageNet, from their original layouts."""

import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pathex.data.listing import below, files_below, is_hidden
from pathex.data.source import CUT, IMAGENET, IN_MEMORY, Source, cut_test, downloading, home
from pathex.data.splits import DecodedSplit, Files, with_sides
from pathex.errors import InvalidInput, PathexWarning, check_integer, refusing
from pathex.files import read

_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

_AUGMENT = {"min_scale": 0.2, "grayscale": 0.2, "jitter": 0.4, "hue": 0.4}
_PUBLISHED = {"train": 1_281_167, "val": 50_000}
_TINY = "tiny-imagenet-200"
_TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_TINY_SIZE = 64
_TINY_AUGMENT = {"min_scale": 0.1, "max_ratio": 1.25}
_TINY_BOXES = "_boxes.txt"
_TINY_CLASS = {"train": 500, "val": 50}


def load_folder(
    path: str,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    in_memory: int = IN_MEMORY,
    verify: bool = False,
    test_fraction: float | None = None,
) -> Source:
    """Load ``imagefolder:PATH``; classes are the folders of ``train`` (or of PATH) in alphabetical order."""
    name = f"imagefolder:{path}"
    root = Path(path).expanduser()
    if not root.is_dir():
        raise InvalidInput("no such folder")
    there = {part: root / part for part in ("train", "test", "val") if (root / part).is_dir()}
    train, test = there.get("train"), there.get("test", there.get("val"))
    if (test is None and test_fraction is None) or (train is None and test is not None):
        missing = "no folder 'train'" if train is None else "neither folder 'test' nor 'val'"
        raise InvalidInput(f"{missing} there. Needed: train/CLASS/* and test/CLASS/* (or val); of CLASS/* alone {CUT}")
    if test is not None and test_fraction is not None:
        raise InvalidInput(f"test_fraction is {test_fraction!r}, and there is a folder {test.name!r}; leave out one")
    check_integer(f"option 'in_memory' of data {name!r}", in_memory, 0)
    places = [place for place in (train or root, test) if place is not None]
    classes = class_folders(places[0])
    splits = list_images(places, classes)
    check_filled(splits[0], classes, places[0])
    splits = splits if test_fraction is None else cut_test(splits[0], test_fraction)
    train_split, test_split = with_sides(name, splits, image_size=image_size, resize=resize)
    return Source(name, train_split, test_split, classes, in_memory=in_memory, verify=verify)


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the classes of a folder in alphabetical order."""
    with refusing(f"folder {str(folder)!r} cannot be read ({{}})", OSError):
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    if not classes:
        raise InvalidInput(f"no folder of a class below {str(folder)!r}. Needed: CLASS/*")
    return tuple(classes)


def list_images(places: Sequence[Path], classes: Sequence[str]) -> list[DecodedSplit]:
    """The images below the folders of the classes at each place, by class and path; their sizes are still to be set."""
    splits, others = [], list[str]()
    for place in places:
        if unknown := sorted({*class_folders(place)} - {*classes}):
            count = f"({len(unknown)} such classes)"
            raise InvalidInput(f"class {unknown[0]!r} of {place.name!r} is no class of 'train' {count}")
        found, seen = [], {os.path.realpath(place / label) for label in classes}
        if len(seen) < len(classes):
            raise InvalidInput(f"two classes in {str(place)!r} are links to one folder")
        for number, label in enumerate(classes):
            for file in files_below(place / label, seen) if (place / label).is_dir() else ():
                if file.lower().endswith(_ENDINGS):
                    found.append((file, number))
                elif not file.endswith(_TINY_BOXES):
                    others.append(file)
        if not found:
            raise InvalidInput(f"no images below {place.name!r} ({' '.join(_ENDINGS)})")
        splits.append(files_split(found))
    if others:
        endings = Counter(Path(file).suffix.lower() or "no ending" for file in others)
        counts = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
        left_out = f"files of other formats are left out: {len(others)} such as {others[0]!r} ({counts})"
        warnings.warn(f"{left_out}; read are {' '.join(_ENDINGS)}", PathexWarning, stacklevel=4)
    return splits


def check_filled(split: DecodedSplit, classes: Sequence[str], place: Path) -> None:
    """Refuse a split, listed at a place, that shows nothing of a class."""
    empty = (split.labels.bincount(minlength=len(classes)) == 0).nonzero().flatten().tolist()
    if empty:
        count = f"{len(empty)} of {len(classes)} classes have none"
        raise InvalidInput(f"class {classes[empty[0]]!r} has no image in {str(place)!r}; {count}")


def files_split(found: Sequence[tuple[str, int]]) -> DecodedSplit:
    """A split of files with their classes."""
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    return DecodedSplit(labels, Files(tuple(file for file, _ in found)), torch.arange(len(found)))


def imagenet_source(source: Source) -> Source:
    """A data set with the normalisation and the augmentation of ImageNet, decoded when it is needed."""
    mean, std = IMAGENET
    return replace(source, mean=mean, std=std, augment="resized-crop", augment_options=_AUGMENT, in_memory=0)


def load_imagenet(
    *, root: str | Path | None = None, image_size: int | None = None, resize: int | None = None, verify: bool = False
) -> Source:
    """Load ``imagenet`` from ``train/WNID`` and ``val/WNID`` of ``root``, or of ``imagenet`` in it."""
    base = home(root)
    folder = next((place for place in (base, base / "imagenet") if (place / "train").is_dir()), None)
    if folder is None:
        raise InvalidInput(
            f"no folder 'train' in {str(base)!r} or {str(base / 'imagenet')!r}. It is not downloaded:"
            " register at https://image-net.org/download.php, unpack ILSVRC2012 into train/WNID/* and val/WNID/*, and"
            " name that folder by the option root or the environment variable PATHEX_ROOT"
        )
    if not (folder / "val").is_dir():
        raise InvalidInput(f"no folder 'val' in {str(folder)!r}. Needed: val/WNID/*")
    classes = class_folders(folder / "train")
    splits = {part: _every_class(folder / part, classes) for part in ("train", "val")}
    if found := [f"{len(split):,} {part} images" for part, split in splits.items() if len(split) < _PUBLISHED[part]]:
        _warn_subset("imagenet", found, "1,281,167 train and 50,000 val images of 1,000 classes", folder)
    train, val = with_sides("imagenet", [*splits.values()], image_size=image_size, resize=resize, imagenet=True)
    return imagenet_source(Source("imagenet", train, val, classes, verify=verify))


def load_tiny_imagenet(*, root: str | Path | None = None) -> Source:
    """Load ``tiny-imagenet`` from its original layout in ``root`` into memory; it is downloaded once."""
    name = "tiny-imagenet"
    folder = _tiny_folder(home(root))
    classes = tuple(sorted(set(read(folder / "wnids.txt").split())))
    if not classes:
        raise InvalidInput(f"{str(folder / 'wnids.txt')!r} is empty")
    for part in ("train", "val/images"):
        if not (folder / part).is_dir():
            raise InvalidInput(f"no folder {part!r} in {str(folder)!r}")
    splits = {"train": _every_class(folder / "train", classes), "val": _annotated(folder / "val", classes)}
    least = {part: int(split.labels.bincount(minlength=len(classes)).min()) for part, split in splits.items()}
    if few := [f"down to {least[part]} {part} images in a class" for part in least if least[part] < _TINY_CLASS[part]]:
        _warn_subset(name, few, "500 train and 50 val images in each", folder)
    train, val = with_sides(name, [*splits.values()], image_size=_TINY_SIZE, resize=None)
    return Source(name, train, val, classes, augment="resized-crop", augment_options=_TINY_AUGMENT, in_memory=2**63)


def _tiny_folder(base: Path) -> Path:
    places = (base, base / _TINY)
    for place in places:
        if (place / "wnids.txt").is_file():
            return place
    there = next((place for place in places if (place / "val" / "val_annotations.txt").is_file()), None)
    if there is not None or (base / _TINY).is_dir():
        raise InvalidInput(f"no file 'wnids.txt' in {str(there or base / _TINY)!r}")
    from torchvision.datasets.utils import download_url, extract_archive

    remedy = f"put {_TINY}.zip, or its folder {_TINY}, into {str(base)!r}"
    with downloading(base, remedy):
        download_url(_TINY_URL, str(base), f"{_TINY}.zip", _TINY_MD5)
        # Unpacked elsewhere first: what is interrupted must not look like the whole.
        with tempfile.TemporaryDirectory(prefix=f".{_TINY}-", dir=base) as temporary:
            extract_archive(str(base / f"{_TINY}.zip"), temporary)
            (Path(temporary) / _TINY).rename(base / _TINY)
    return base / _TINY


def _every_class(folder: Path, classes: tuple[str, ...]) -> DecodedSplit:
    absent = [label for label in classes if not Path(below(label, folder)).is_dir()]
    if absent:
        count = f"{len(absent)} of {len(classes)} classes are missing there"
        raise InvalidInput(f"no folder {absent[0]!r} in {str(folder)!r}; {count}")
    [split] = list_images([folder], classes)
    check_filled(split, classes, folder)
    return split


def _annotated(folder: Path, classes: tuple[str, ...]) -> DecodedSplit:
    """The validation images of Tiny-ImageNet, whose classes are in a table."""
    file = folder / "val_annotations.txt"
    if not file.is_file():
        raise InvalidInput(f"no file 'val_annotations.txt' in {str(folder)!r}")
    labels: dict[str, int] = {}
    for number, line in enumerate(read(file).splitlines(), 1):
        image, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        if label not in classes or image in labels:
            raise InvalidInput(f"line {number} of {str(file)!r} is no new image with a class: {line!r}")
        labels[image] = classes.index(label)
    there = {Path(file).name for file in files_below(folder / "images") if file.lower().endswith((".jpeg", ".jpg"))}
    absent, unnamed = sorted(labels.keys() - there), sorted(there - labels.keys())
    for what, images in (("is missing", absent), ("has no line in val_annotations.txt", unnamed)):
        if images:
            first = str(folder / "images" / images[0])
            raise InvalidInput(f"image {first!r} {what}; {len(images)} such images")
    order = sorted(labels, key=lambda image: (labels[image], image))
    split = files_split([(str(folder / "images" / image), labels[image]) for image in order])
    check_filled(split, classes, file)
    return split


def _warn_subset(name: str, found: list[str], published: str, folder: Path) -> None:
    # Called by a loader, which load() calls: the warning belongs to the line that calls load().
    warnings.warn(
        f"data {name!r} in {str(folder)!r} is a part of the published images: {', '.join(found)};"
        f" published: {published}",
        PathexWarning,
        stacklevel=4,
    )
