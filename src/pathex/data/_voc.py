"""Pascal VOC 2012, semantic segmentation."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from pathex.data._decoding import check_integers
from pathex.data._downloads import home, leaving_no_folder
from pathex.data._pairs import PairFiles, SegmentationData, check_pairs
from pathex.data._source import channel_numbers
from pathex.errors import InvalidInput, PathexWarning

__all__ = ["load_voc"]

_NAME = "voc2012"
_FOLDER = Path("VOCdevkit") / "VOC2012"
_LISTS = Path("ImageSets") / "Segmentation"
_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# Statistics of ImageNet, which the backbones of the published experiments were trained with.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PUBLISHED = {"train": 1464, "val": 1449}


def load_voc(
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    verify: bool = True,
) -> SegmentationData:
    """Load the segmentation part of Pascal VOC 2012 through torchvision, which downloads it once (2 GB).

    The training images are those of the list ``train``, the test images those of ``val``: the labels of VOC's own test
    images are not public.

    Args:
        root: The folder ``VOC2012``, the one that holds it or ``VOCdevkit/VOC2012``, or that of the download; None is
            the environment variable ``PATHEX_ROOT``, else ``~/.cache/pathex``. The lists in ``ImageSets/Segmentation``
            may name fewer images than published.
        image_size: Short side to which images and label maps are brought, in pixels; None is their own size.
        mean: Mean of each channel, or of all, that images are normalised with, in [0, 1]; None is ImageNet's.
        std: Standard deviation of each channel, likewise.
        verify: Whether every file is decoded once here (20 s of one core for all of VOC); without it only their
            headers are looked at.

    Returns:
        The data set: 21 classes, the first of which is the background.

    Raises:
        InvalidInput: If an option cannot be used, or files are not to be had, missing or damaged.
    """
    check_integers(_NAME, image_size=(image_size, 1))
    means = channel_numbers(_NAME, "mean", _MEAN if mean is None else mean, 3)
    stds = channel_numbers(_NAME, "std", _STD if std is None else std, 3)
    folder = _folder(home(root))
    splits = {part: _split(folder, part, image_size) for part in _PUBLISHED}
    shared = sorted(set(splits["train"].image_files) & set(splits["val"].image_files))
    if shared:
        raise InvalidInput(f"data {_NAME!r}: {Path(shared[0]).stem!r} is in both lists, train.txt and val.txt")
    for split in splits.values():
        check_pairs(split, _NAME, decode=verify)
    found = {part: len(split) for part, split in splits.items()}
    if found != _PUBLISHED:
        warnings.warn(
            f"data {_NAME!r}: {found['train']} + {found['val']} images, published {_PUBLISHED['train']} +"
            f" {_PUBLISHED['val']}",
            PathexWarning,
            stacklevel=2,
        )
    return SegmentationData(_NAME, splits["train"], splits["val"], _CLASSES, means, stds)


def _folder(base: Path) -> Path:
    """The folder ``VOC2012``, which is downloaded if it is not there."""
    for place in (base / _FOLDER, base / _FOLDER.name, base):
        if (place / _LISTS).is_dir():
            return place
    if not (base / _FOLDER).is_dir():
        _download(base)
    return base / _FOLDER


def _download(base: Path) -> None:
    from torchvision.datasets import VOCSegmentation

    try:
        with leaving_no_folder(base):
            base.mkdir(parents=True, exist_ok=True)
            VOCSegmentation(base, year="2012", image_set="train", download=True)
    except (OSError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InvalidInput(
            f"data {_NAME!r}: no folder {str(_FOLDER)!r} in {str(base)!r}, and it cannot be downloaded ({reason}); put"
            " VOCtrainval_11-May-2012.tar or what it holds there, or name another folder with root="
        ) from error


def _split(folder: Path, part: str, image_size: int | None) -> PairFiles:
    path = folder / _LISTS / f"{part}.txt"
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"data {_NAME!r}: the list {str(path)!r} cannot be read ({type(error).__name__})") from error
    if not lines or not all(lines) or len(set(lines)) < len(lines):
        raise InvalidInput(
            f"data {_NAME!r}: the list {str(path)!r} is empty, or has a line that is empty or twice there"
        )
    images = tuple(str(folder / "JPEGImages" / f"{line}.jpg") for line in lines)
    labels = tuple(str(folder / "SegmentationClass" / f"{line}.png") for line in lines)
    return PairFiles(images, labels, len(_CLASSES), image_size)
