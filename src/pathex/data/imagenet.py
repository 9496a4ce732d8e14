"""ImageNet and Tiny-ImageNet, from their original layouts."""

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

from pathex.data.decoder import DecodedSplit, with_sides
from pathex.data.downloads import downloading, home
from pathex.data.folders import check_filled, class_folders, files_split, list_images
from pathex.data.source import IMAGENET, Source
from pathex.errors import InvalidInput, PathexWarning

_AUGMENT = {"min_scale": 0.2, "grayscale": 0.2, "jitter": 0.4, "hue": 0.4}
_PUBLISHED = {"train": 1_281_167, "val": 50_000}

_TINY = "tiny-imagenet-200"
_TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_TINY_SIZE = 64
_TINY_AUGMENT = {"min_scale": 0.1, "max_ratio": 1.25}
_TINY_CLASS = {"train": 500, "val": 50}


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
            f"data 'imagenet': no folder 'train' in {str(base)!r} or {str(base / 'imagenet')!r}. It is not downloaded:"
            " register at https://image-net.org/download.php, unpack ILSVRC2012 into train/WNID/* and val/WNID/*, and"
            " name that folder by the option root or the environment variable PATHEX_ROOT"
        )
    if not (folder / "val").is_dir():
        raise InvalidInput(f"data 'imagenet': no folder 'val' in {str(folder)!r}. Needed: val/WNID/*")
    classes = class_folders(folder / "train", "imagenet")
    splits = {part: _every_class(folder / part, classes, "imagenet") for part in ("train", "val")}
    if found := [f"{len(split):,} {part} images" for part, split in splits.items() if len(split) < _PUBLISHED[part]]:
        _warn_subset("imagenet", found, "1,281,167 train and 50,000 val images of 1,000 classes", folder)
    train, val = with_sides("imagenet", [*splits.values()], image_size=image_size, resize=resize, imagenet=True)
    return imagenet_source(Source("imagenet", train, val, classes, verify=verify))


def load_tiny_imagenet(*, root: str | Path | None = None) -> Source:
    """Load ``tiny-imagenet`` from its original layout in ``root`` into memory; it is downloaded once."""
    name = "tiny-imagenet"
    folder = _tiny_folder(home(root))
    classes = tuple(sorted(set((folder / "wnids.txt").read_text(encoding="utf-8").split())))
    if not classes:
        raise InvalidInput(f"data {name!r}: {str(folder / 'wnids.txt')!r} is empty")
    for part in ("train", "val/images"):
        if not (folder / part).is_dir():
            raise InvalidInput(f"data {name!r}: no folder {part!r} in {str(folder)!r}")
    splits = {"train": _every_class(folder / "train", classes, name), "val": _annotated(folder / "val", classes)}
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
        raise InvalidInput(f"data 'tiny-imagenet': no file 'wnids.txt' in {str(there or base / _TINY)!r}")
    from torchvision.datasets.utils import download_url, extract_archive

    remedy = f"put {_TINY}.zip, or its folder {_TINY}, into {str(base)!r}"
    with downloading("tiny-imagenet", base, remedy):
        download_url(_TINY_URL, str(base), f"{_TINY}.zip", _TINY_MD5)
        # Unpacked elsewhere first: what is interrupted must not look like the whole.
        with tempfile.TemporaryDirectory(prefix=f".{_TINY}-", dir=base) as temporary:
            extract_archive(str(base / f"{_TINY}.zip"), temporary)
            (Path(temporary) / _TINY).rename(base / _TINY)
    return base / _TINY


def _every_class(folder: Path, classes: tuple[str, ...], name: str) -> DecodedSplit:
    absent = [label for label in classes if not (folder / label).is_dir()]
    if absent:
        count = f"{len(absent)} of {len(classes)} classes are missing there"
        raise InvalidInput(f"data {name!r}: no folder {absent[0]!r} in {str(folder)!r}; {count}")
    split = list_images(folder, classes, name)
    check_filled(split, classes, folder, name)
    return split


def _annotated(folder: Path, classes: tuple[str, ...]) -> DecodedSplit:
    """The validation images of Tiny-ImageNet, whose classes are in a table."""
    name, file = "tiny-imagenet", folder / "val_annotations.txt"
    if not file.is_file():
        raise InvalidInput(f"data {name!r}: no file 'val_annotations.txt' in {str(folder)!r}")
    labels: dict[str, int] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        image, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        if label not in classes or image in labels:
            raise InvalidInput(f"data {name!r}: line {number} of {str(file)!r} is no new image with a class: {line!r}")
        labels[image] = classes.index(label)
    there = {path.name for path in (folder / "images").iterdir() if path.suffix.lower() in {".jpeg", ".jpg"}}
    absent, unnamed = sorted(labels.keys() - there), sorted(there - labels.keys())
    for what, images in (("is missing", absent), ("has no line in val_annotations.txt", unnamed)):
        if images:
            first = str(folder / "images" / images[0])
            raise InvalidInput(f"data {name!r}: image {first!r} {what}; {len(images)} such images")
    order = sorted(labels, key=lambda image: (labels[image], image))
    split = files_split([(str(folder / "images" / image), labels[image]) for image in order])
    check_filled(split, classes, file, name)
    return split


def _warn_subset(name: str, found: list[str], published: str, folder: Path) -> None:
    # Called by a loader, which load() calls: the warning belongs to the line that calls load().
    warnings.warn(
        f"data {name!r} in {str(folder)!r} is a part of the published images: {', '.join(found)};"
        f" published: {published}",
        PathexWarning,
        stacklevel=4,
    )
