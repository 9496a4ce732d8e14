"""ImageNet and Tiny-ImageNet, in the layouts in which they are published."""

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from pathex.data._decoding import IMAGENET_SIZE, check_integers
from pathex.data._downloads import home, leaving_no_folder
from pathex.data._folders import FolderSplit, check_sides, class_folders, list_images
from pathex.data._source import Source
from pathex.errors import InvalidInput, PathexWarning

__all__ = ["imagenet_sides", "imagenet_source", "load_imagenet", "load_tiny_imagenet"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_AUGMENT = {"min_scale": 0.2, "grayscale": 0.2, "jitter": 0.4, "hue": 0.4}
_RESIZE = 256 / 224
_PUBLISHED = {"train": 1_281_167, "val": 50_000}

_TINY = "tiny-imagenet-200"
_TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_TINY_SIZE = 64
_TINY_AUGMENT = {"min_scale": 0.1, "max_ratio": 1.25}
_TINY_CLASS = {"train": 500, "val": 50}


def imagenet_sides(name: str, image_size: int | None, resize: int | None) -> dict[str, int]:
    """The sides of ImageNet's images: cut from an image whose short side is larger by 256 / 224.

    Args:
        name: Name of the data set, for messages.
        image_size: Side of the square; None is 224.
        resize: Short side before the centre is cut out; None keeps the ratio.

    Returns:
        Both sides.
    """
    check_integers(name, image_size=(image_size, 1), resize=(resize, 1))
    size = IMAGENET_SIZE if image_size is None else image_size
    sides = {"image_size": size, "resize": round(size * _RESIZE) if resize is None else resize}
    check_sides(name, **sides)
    return sides


def imagenet_source(source: Source) -> Source:
    """A data set with the normalisation and the augmentation of ImageNet.

    Args:
        source: What a loader found.

    Returns:
        The same images.
    """
    return replace(source, mean=_MEAN, std=_STD, augment="resized-crop", augment_options=_AUGMENT)


def load_imagenet(
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    verify: bool = False,
) -> Source:
    """Load ``imagenet`` from ``train/WNID`` and ``val/WNID``; images are decoded when they are needed.

    Args:
        root: The folder, or the one that holds it as ``imagenet``; None is the environment variable ``PATHEX_ROOT``,
            else ``~/.cache/pathex``.
        image_size: Side to which images are brought, in pixels; None is 224.
        resize: Short side before the centre is cut out, in pixels; None keeps the usual ratio of 256 to 224.
        verify: Whether all images are decoded once beforehand.

    Returns:
        The data set; classes are the WNIDs in alphabetical order.

    Raises:
        InvalidInput: If folders, classes or images are missing.
    """
    sides = imagenet_sides("imagenet", image_size, resize)
    base = home(root)
    folder = next((place for place in (base, base / "imagenet") if (place / "train").is_dir()), None)
    if folder is None:
        raise InvalidInput(
            f"data 'imagenet': no folder 'train' in {str(base)!r} or {str(base / 'imagenet')!r}. It is not downloaded:"
            " register at https://image-net.org/download.php, unpack ILSVRC2012 into train/WNID/* and val/WNID/*, and"
            " name that folder by the option root or the environment variable PATHEX_ROOT"
        )
    if not (folder / "val").is_dir():
        raise InvalidInput(f"data 'imagenet': no folder 'val' in {str(folder)!r}. Needed: val/WNID/*")
    classes = class_folders(folder / "train", "imagenet")
    splits = {part: _every_class(folder / part, classes, "imagenet") for part in ("train", "val")}
    found = [f"{len(split):,} {part} images" for part, split in splits.items() if len(split) < _PUBLISHED[part]]
    if found:
        numbers = " and ".join(f"{count:,} {part}" for part, count in _PUBLISHED.items())
        _warn_of_subset("imagenet", ", ".join(found), f"{numbers} images of 1,000 classes", folder)
    train, val = (split.with_sides(**sides) for split in splits.values())
    return imagenet_source(Source("imagenet", train, val, classes, in_memory=0, verify=verify))


def load_tiny_imagenet(*, root: str | Path | None = None) -> Source:
    """Load ``tiny-imagenet`` in its original layout, decoded into memory; it is downloaded once.

    Args:
        root: The folder ``tiny-imagenet-200``, or the one that holds it; None is the environment variable
            ``PATHEX_ROOT``, else ``~/.cache/pathex``.

    Returns:
        The data set, colour, 64 x 64 pixels; classes are the WNIDs in alphabetical order.

    Raises:
        InvalidInput: If anything is missing, or the files are neither there nor to be had.
    """
    base = home(root)
    places = (base, base / _TINY)
    folder = next((place for place in places if (place / "wnids.txt").is_file()), None)
    if folder is None:
        there = next((place for place in places if (place / "val" / "val_annotations.txt").is_file()), None)
        if there is not None or (base / _TINY).is_dir():
            raise InvalidInput(f"data 'tiny-imagenet': no file 'wnids.txt' in {str(there or base / _TINY)!r}")
        folder = _download_tiny(base)
    classes = tuple(sorted(set((folder / "wnids.txt").read_text(encoding="utf-8").split())))
    if not classes:
        raise InvalidInput(f"data 'tiny-imagenet': {str(folder / 'wnids.txt')!r} is empty")
    for part in ("train", "val/images"):
        if not (folder / part).is_dir():
            raise InvalidInput(f"data 'tiny-imagenet': no folder {part!r} in {str(folder)!r}")
    train, val = _every_class(folder / "train", classes, "tiny-imagenet"), _annotated(folder / "val", classes)
    few = []
    for part, split in (("train", train), ("val", val)):
        least = int(split.labels.bincount(minlength=len(classes)).min())
        if least < _TINY_CLASS[part]:
            few.append(f"down to {least} {part} images in a class")
    if few:
        numbers = " and ".join(f"{count} {part}" for part, count in _TINY_CLASS.items())
        _warn_of_subset("tiny-imagenet", ", ".join(few), f"{numbers} images in each", folder)
    sides = {"image_size": _TINY_SIZE, "resize": _TINY_SIZE}
    return Source(
        "tiny-imagenet",
        train.with_sides(**sides),
        val.with_sides(**sides),
        classes,
        augment="resized-crop",
        augment_options=_TINY_AUGMENT,
        in_memory=2**63,
    )


def _every_class(folder: Path, classes: tuple[str, ...], name: str) -> FolderSplit:
    absent = [label for label in classes if not (folder / label).is_dir()]
    if absent:
        count = f"{len(absent)} of {len(classes)} classes are missing there"
        raise InvalidInput(f"data {name!r}: no folder {absent[0]!r} in {str(folder)!r}; {count}")
    split = list_images(folder, classes, name)
    _check_filled(split, classes, folder, name)
    return split


def _annotated(folder: Path, classes: tuple[str, ...]) -> FolderSplit:
    """The validation images of Tiny-ImageNet, whose classes are in a table."""
    name, file = "tiny-imagenet", folder / "val_annotations.txt"
    if not file.is_file():
        raise InvalidInput(f"data {name!r}: no file 'val_annotations.txt' in {str(folder)!r}")
    numbers = {label: number for number, label in enumerate(classes)}
    labels: dict[str, int] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in numbers or fields[0] in labels:
            raise InvalidInput(f"data {name!r}: line {number} of {str(file)!r} is no new image with a class: {line!r}")
        labels[fields[0]] = numbers[fields[1]]
    there = {path.name for path in (folder / "images").iterdir() if path.suffix.lower() in {".jpeg", ".jpg"}}
    absent, unnamed = sorted(labels.keys() - there), sorted(there - labels.keys())
    for what, images in (("is missing", absent), ("has no line in val_annotations.txt", unnamed)):
        if images:
            first = str(folder / "images" / images[0])
            raise InvalidInput(f"data {name!r}: image {first!r} {what}; {len(images)} such images")
    order = sorted(labels, key=lambda image: (labels[image], image))
    paths = tuple(str(folder / "images" / image) for image in order)
    split = FolderSplit(torch.tensor([labels[image] for image in order], dtype=torch.int64), 0, 0, paths)
    _check_filled(split, classes, file, name)
    return split


def _check_filled(split: FolderSplit, classes: tuple[str, ...], place: Path, name: str) -> None:
    empty = (split.labels.bincount(minlength=len(classes)) == 0).nonzero().flatten().tolist()
    if empty:
        count = f"{len(empty)} of {len(classes)} classes have none"
        raise InvalidInput(f"data {name!r}: class {classes[empty[0]]!r} has no image in {str(place)!r}; {count}")


def _warn_of_subset(name: str, found: str, published: str, folder: Path) -> None:
    # Called by a loader, which load() calls: the warning belongs to the line that calls load().
    warnings.warn(
        f"data {name!r} in {str(folder)!r} is a part of the published images: {found}; published: {published}",
        PathexWarning,
        stacklevel=4,
    )


def _download_tiny(base: Path) -> Path:
    from torchvision.datasets.utils import download_url, extract_archive

    archive = base / f"{_TINY}.zip"
    try:
        with leaving_no_folder(base):
            base.mkdir(parents=True, exist_ok=True)
            download_url(_TINY_URL, str(base), archive.name, _TINY_MD5)
            # Unpacked elsewhere first: what is interrupted must not look like the whole.
            with tempfile.TemporaryDirectory(prefix=f".{_TINY}-", dir=base) as temporary:
                extract_archive(str(archive), temporary)
                (Path(temporary) / _TINY).rename(base / _TINY)
    except (OSError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InvalidInput(
            f"data 'tiny-imagenet' cannot be downloaded ({reason}); put {archive.name}, or its folder {_TINY}, into"
            f" {str(base)!r}"
        ) from error
    return base / _TINY
