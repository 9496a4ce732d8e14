"""Images in folders, one folder for each class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pathex.data._decoding import DecodedSplit, check_integers, common_size
from pathex.data._source import IN_MEMORY, Source
from pathex.errors import InvalidInput

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FolderSplit", "check_sides", "class_folders", "list_images", "load_folder"]

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"BM", b"II", b"MM", b"RIFF", *(b"P%d" % kind for kind in range(1, 7)))


@dataclass(frozen=True, eq=False)
class FolderSplit(DecodedSplit):
    """Labelled image files, decoded when they are asked for.

    Attributes:
        paths: The files.
    """

    paths: tuple[str, ...]

    def open(self, number: int) -> "Image.Image":
        """Open an image.

        Args:
            number: Number of the image.

        Returns:
            The image, not decoded yet.
        """
        from PIL import Image

        return Image.open(self.paths[number])

    def describe(self, number: int) -> str:
        """The path of an image.

        Args:
            number: Number of the image.

        Returns:
            The path in quotes.
        """
        return repr(self.paths[number])

    def fault(self, number: int) -> str | None:
        """Whether a file is missing, empty, or does not begin as images do.

        Args:
            number: Number of the image.

        Returns:
            One line, or None.
        """
        try:
            with Path(self.paths[number]).open("rb", buffering=0) as file:
                head = file.read(16)
        except OSError as error:
            return f"image {self.describe(number)} cannot be read ({type(error).__name__}: {error.strerror})"
        if head.startswith(_SIGNATURES):
            return None
        reason = "no image file" if head else "an empty file"
        return f"image {self.describe(number)} cannot be read ({reason})"

    def subset(self, rows: Tensor, labels: Tensor) -> "FolderSplit":
        """Some of the images, under other labels.

        Args:
            rows: Numbers of the images, int64 (M,).
            labels: Their classes, int64 (M,).

        Returns:
            A split of its own.
        """
        return replace(self, labels=labels, paths=tuple(self.paths[row] for row in rows.tolist()))


def load_folder(
    path: str,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    in_memory: int = IN_MEMORY,
    verify: bool = False,
) -> Source:
    """Load ``imagefolder:PATH``.

    Args:
        path: A folder with ``train/CLASS/*`` and ``test/CLASS/*``, or ``val`` where there is no ``test``.
        image_size: Side to which images are brought, in pixels; None is the size of the training images if they are
            square and all of one size, else 224.
        resize: Short side before the centre is cut out, in pixels; None is ``image_size``.
        in_memory: Largest data set that is decoded into memory, in bytes; above it images are decoded when needed.
        verify: Whether images that are decoded when needed are all decoded once beforehand.

    Returns:
        The data set; classes are the folders of ``train`` in alphabetical order.

    Raises:
        InvalidInput: If folders or files are missing.
    """
    name = f"imagefolder:{path}"
    root = Path(path).expanduser()
    if not (root / "train").is_dir():
        raise InvalidInput(f"data {name!r}: no folder 'train' there. Needed: train/CLASS/* and test/CLASS/* (or val)")
    test_root = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if test_root is None:
        raise InvalidInput(f"data {name!r}: neither folder 'test' nor 'val' there")
    check_integers(name, image_size=(image_size, 1), resize=(resize, 1), in_memory=(in_memory, 0))
    classes = class_folders(root / "train", name)
    train = list_images(root / "train", classes, name)
    test = list_images(test_root, classes, name)
    bare = sorted(set(range(len(classes))) - set(train.labels.tolist()))
    if bare:
        raise InvalidInput(
            f"data {name!r}: class {classes[bare[0]]!r} has no training image ({len(bare)} of {len(classes)} classes)"
        )
    size = image_size if image_size is not None else common_size(train)
    sides = {"image_size": size, "resize": size if resize is None else resize}
    check_sides(name, **sides)
    return Source(
        name, train.with_sides(**sides), test.with_sides(**sides), classes, in_memory=in_memory, verify=verify
    )


def check_sides(name: str, *, image_size: int, resize: int) -> None:
    """Check that the square fits into the resized image.

    Args:
        name: Name of the data set, for messages.
        image_size: Side of the square, in pixels.
        resize: Short side of the image it is cut from, in pixels.

    Raises:
        InvalidInput: If it does not.
    """
    if resize < image_size:
        raise InvalidInput(f"option 'resize' of data {name!r} must be at least image_size={image_size}, got {resize}")


def class_folders(folder: Path, name: str) -> tuple[str, ...]:
    """The classes of a folder.

    Args:
        folder: A folder with one folder for each class.
        name: Name of the data set, for messages.

    Returns:
        Their names in alphabetical order.

    Raises:
        InvalidInput: If there is none.
    """
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not classes:
        raise InvalidInput(f"data {name!r}: no folder of a class below {str(folder)!r}. Needed: CLASS/*")
    return classes


def list_images(folder: Path, classes: Sequence[str], name: str) -> FolderSplit:
    """The image files below the folders of the classes.

    Args:
        folder: A folder with one folder for each class.
        classes: Names of the classes.
        name: Name of the data set, for messages.

    Returns:
        The images in order of class and path; their sizes are still to be set.

    Raises:
        InvalidInput: If there is a folder of another class, or no image.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    numbers = {label: number for number, label in enumerate(classes)}
    unknown = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name not in numbers)
    if unknown:
        raise InvalidInput(
            f"data {name!r}: class {unknown[0]!r} of {folder.name!r} is no class of 'train'"
            f" ({len(unknown)} such classes)"
        )
    found = make_dataset(folder, numbers, IMG_EXTENSIONS, allow_empty=True)
    if not found:
        raise InvalidInput(f"data {name!r}: no images below {folder.name!r} ({' '.join(IMG_EXTENSIONS)})")
    return FolderSplit(torch.tensor([label for _, label in found]), 0, 0, tuple(file for file, _ in found))
