"""Images in folders, one folder for each class."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pathex.data._images import ArraySplit, ImageData, assemble
from pathex.errors import InvalidInput

__all__ = ["FolderSplit", "load_folder"]

_DEFAULT_SIZE = 224
_MEMORY = 4 * 2**30


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Labelled image files, decoded when they are asked for.

    Attributes:
        paths: The files.
        labels: Class of each, int64 (N,).
        image_size: Side of the decoded images, in pixels.
    """

    paths: tuple[str, ...]
    labels: Tensor
    image_size: int

    def __len__(self) -> int:
        return len(self.paths)

    def images(self, indices: Tensor) -> Tensor:
        """Decode images: RGB, the short side resized to ``image_size``, then a square cut from the centre.

        Args:
            indices: Numbers of the images, int64 (B,).

        Returns:
            Images, uint8 (B, 3, image_size, image_size).
        """
        out = torch.empty(len(indices), 3, self.image_size, self.image_size, dtype=torch.uint8)

        def fill(place: int, number: int) -> None:
            out[place] = _decode(self.paths[number], self.image_size)

        with ThreadPoolExecutor() as pool:
            list(pool.map(fill, range(len(indices)), indices.tolist()))
        return out

    def decoded(self) -> ArraySplit:
        """Decode everything once.

        Returns:
            The same images in memory.
        """
        return ArraySplit(self.images(torch.arange(len(self))), self.labels)


def load_folder(path: str, *, image_size: int | None = None, in_memory: int = _MEMORY) -> ImageData:
    """Load ``imagefolder:PATH``.

    Args:
        path: A folder with ``train/CLASS/*`` and ``test/CLASS/*``, or ``val`` where there is no ``test``.
        image_size: Side to which images are brought, in pixels; None is the size of the training images if they are
            square and all of one size, else 224.
        in_memory: Largest data set that is decoded into memory, in bytes; above it images are decoded when needed.

    Returns:
        The data set; classes are the folders of ``train`` in alphabetical order.

    Raises:
        InvalidInput: If folders or files are missing or cannot be read.
    """
    name = f"imagefolder:{path}"
    root = Path(path).expanduser()
    if not (root / "train").is_dir():
        raise InvalidInput(f"data {name!r}: no folder 'train' there. Needed: train/CLASS/* and test/CLASS/* (or val)")
    test_root = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if test_root is None:
        raise InvalidInput(f"data {name!r}: neither folder 'test' nor 'val' there")
    for option, value, least in (("image_size", image_size, 1), ("in_memory", in_memory, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise InvalidInput(f"option {option!r} of data {name!r} must be an integer from {least} on, got {value!r}")
    classes = tuple(sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir()))
    train_files, train_labels = _files(root / "train", classes, name)
    test_files, test_labels = _files(test_root, classes, name)
    bare = sorted(set(range(len(classes))) - set(train_labels.tolist()))
    if bare:
        raise InvalidInput(f"data {name!r}: class {classes[bare[0]]!r} has no training image")
    size = image_size if image_size is not None else _common_size(train_files)
    train, test = FolderSplit(train_files, train_labels, size), FolderSplit(test_files, test_labels, size)
    if 3 * size * size * (len(train) + len(test)) <= in_memory:
        return assemble(name, train.decoded(), test.decoded(), classes)
    return assemble(name, train, test, classes)


def _files(folder: Path, classes: Sequence[str], name: str) -> tuple[tuple[str, ...], Tensor]:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    unknown = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name not in classes)
    if unknown:
        raise InvalidInput(f"data {name!r}: class {unknown[0]!r} of {folder.name!r} is no class of 'train'")
    numbers = {label: number for number, label in enumerate(classes)}
    found = make_dataset(folder, numbers, IMG_EXTENSIONS, allow_empty=True) if numbers else []
    if not found:
        raise InvalidInput(f"data {name!r}: no images below {folder.name!r} ({' '.join(IMG_EXTENSIONS)})")
    return tuple(file for file, _ in found), torch.tensor([label for _, label in found])


def _common_size(paths: Sequence[str]) -> int:
    from PIL import Image

    common: int | None = None
    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InvalidInput(_damaged(path, error)) from error
        if width != height or common not in {None, width}:
            return _DEFAULT_SIZE
        common = width
    return common or _DEFAULT_SIZE


def _decode(path: str, size: int) -> Tensor:
    from PIL import Image
    from torchvision.transforms.v2 import functional as transforms

    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidInput(_damaged(path, error)) from error
    resized = transforms.resize(rgb, [size], antialias=True)
    return transforms.pil_to_tensor(transforms.center_crop(resized, [size, size]))


def _damaged(path: str, error: BaseException) -> str:
    return f"image {path!r} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
