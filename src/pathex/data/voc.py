"""Pascal VOC 2012, semantic segmentation."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from pathex.data.segmentation import IGNORED, SegmentationData, SegmentationSplit, check_samples
from pathex.data.source import IMAGENET, channel_numbers, downloading, home
from pathex.errors import InvalidInput, PathexWarning, check_integer, refusing

_NAME = "voc2012"
_FOLDER = Path("VOCdevkit") / "VOC2012"
_LISTS = Path("ImageSets") / "Segmentation"
_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_PUBLISHED = (1464, 1449)
# The bits of a label, from the lowest on, are the highest bits of red, green, blue, and so on in turn.
_COLOURS = {
    tuple(sum((label >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3)): label
    for label in (*range(len(_CLASSES)), IGNORED)
}


def load_voc(
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    verify: bool = True,
) -> SegmentationData:
    """Load the segmentation part of Pascal VOC 2012 through torchvision, which downloads it once (2 GB)."""
    # The test images are those of the list val: the labels of VOC's own test images are not public.
    if image_size is not None:
        check_integer(f"option 'image_size' of data {_NAME!r}", image_size)
    # Statistics of ImageNet, which the backbones of the published experiments were trained with.
    means, stds = (
        channel_numbers(_NAME, option, usual if given is None else given, 3)
        for option, given, usual in zip(("mean", "std"), (mean, std), IMAGENET, strict=True)
    )
    folder = _folder(home(root))
    train, val = (_split(folder, part, image_size) for part in ("train", "val"))
    shared = sorted(set(train.image_files) & set(val.image_files))
    if shared:
        raise InvalidInput(f"{Path(shared[0]).stem!r} is in both lists, train.txt and val.txt")
    for split in (train, val):
        check_samples(split, decode=verify)
    if (len(train), len(val)) != _PUBLISHED:
        found, published = f"{len(train)} + {len(val)}", f"{_PUBLISHED[0]} + {_PUBLISHED[1]}"
        warnings.warn(f"data {_NAME!r}: {found} images, published {published}", PathexWarning, stacklevel=2)
    return SegmentationData(_NAME, train, val, _CLASSES, means, stds)


def _folder(base: Path) -> Path:
    """The folder ``VOC2012``, which is downloaded if it is not there."""
    for place in (base / _FOLDER, base / _FOLDER.name, base):
        if (place / _LISTS).is_dir():
            return place
    if not (base / _FOLDER).is_dir():
        from torchvision.datasets import VOCSegmentation

        remedy = (
            f"there is no folder {str(_FOLDER)!r} in {str(base)!r}: put VOCtrainval_11-May-2012.tar or what it holds"
            " there, or name another folder with root="
        )
        with downloading(base, remedy):
            VOCSegmentation(base, year="2012", image_set="train", download=True)
    return base / _FOLDER


def _split(folder: Path, part: str, image_size: int | None) -> SegmentationSplit:
    path = folder / _LISTS / f"{part}.txt"
    with refusing(f"the list {str(path)!r} cannot be read ({{}})", OSError, UnicodeDecodeError):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if not lines or not all(lines) or len(set(lines)) < len(lines):
        raise InvalidInput(f"the list {str(path)!r} is empty, or has a line that is empty or twice")
    images = tuple(str(folder / "JPEGImages" / f"{line}.jpg") for line in lines)
    labels = tuple(str(folder / "SegmentationClass" / f"{line}.png") for line in lines)
    return SegmentationSplit(images, labels, len(_CLASSES), image_size, _COLOURS)
