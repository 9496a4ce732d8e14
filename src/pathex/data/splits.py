"""Labelled images that can be fetched by number: in memory, or decoded when they are asked for."""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pathex.data.listing import below
from pathex.data.workers import attempt, chunks, problems, read_ahead
from pathex.errors import InvalidInput, PathexWarning, check_integer, refusing
from pathex.files import open_image

if TYPE_CHECKING:
    from PIL import Image

_USUAL_SIZE = 224
"""Side of images whose own size says nothing."""

_CHUNK = 256
_T = TypeVar("_T")


@runtime_checkable
class Split(Protocol):
    """Labelled images that can be fetched by number."""

    @property
    def labels(self) -> Tensor:
        """Class of each image, int64 (N,)."""

    def __len__(self) -> int: ...

    def images(self, indices: Tensor) -> Tensor:
        """Images of some numbers (B,), uint8 (B, C, H, W)."""


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """Labelled images in memory.

    Attributes:
        data: Images, uint8 (N, C, H, W).
        labels: Class of each image, int64 (N,).
    """

    data: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """Images of some numbers (B,), uint8 (B, C, H, W), on the device of ``data``."""
        return self.data[indices.to(self.data.device)]

    def subset(self, rows: Tensor, labels: Tensor) -> "ArraySplit":
        """The images of some numbers (M,), under other labels (M,)."""
        return ArraySplit(self.data[rows], labels)


@dataclass(frozen=True, eq=False)
class Files:
    """Image files."""

    paths: tuple[str, ...]
    quick_to_open: ClassVar[bool] = True

    def open(self, row: int) -> "Image.Image":
        """Open an image; pixels are read when they are first used."""
        return open_image(self.paths[row])

    def describe(self, row: int) -> str:
        """Where an image comes from, for messages."""
        return repr(self.paths[row])


@dataclass(frozen=True, eq=False)
class Table:
    """Encoded images in a column of a ``datasets.Dataset``, which comes from ``place``, or files in ``folders``."""

    table: Any
    column: str
    place: str
    folders: tuple[Path, ...]
    quick_to_open: ClassVar[bool] = False

    def open(self, row: int) -> "Image.Image":
        """Open an image; pixels are read when they are first used."""
        cell = self.table[row][self.column] or {}
        if cell.get("bytes"):
            return open_image(io.BytesIO(cell["bytes"]))
        if cell.get("path"):
            return open_image(below(cell["path"], *self.folders))
        raise OSError("no image there")

    def describe(self, row: int) -> str:
        """Where an image comes from, for messages."""
        return f"in row {row} of {self.place!r}"


@dataclass(frozen=True, eq=False)
class DecodedSplit:
    """Labelled images that are decoded when they are asked for, each as an RGB square.

    Attributes:
        labels: Class of each image, int64 (N,).
        source: What the images are read from.
        rows: Place of each image in the source, int64 (N,).
        image_size: Side of the decoded images, in pixels.
        resize: Short side to which an image is brought before a square is cut from its centre, in pixels.
    """

    labels: Tensor
    source: Files | Table
    rows: Tensor
    image_size: int = 0
    resize: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: Tensor, labels: Tensor) -> "DecodedSplit":
        """The images of some numbers (M,), under other labels (M,)."""
        return replace(self, labels=labels, rows=self.rows[rows])

    def image(self, number: int, transform: "Callable[[Image.Image], Image.Image] | None" = None) -> Tensor:
        """Decode one image to uint8 (3, side, side): its centre, or what ``transform`` makes of all of it in RGB."""
        with refusing("{}; verify=True looks for such images when the data are loaded", InvalidInput):
            return self.pixels(number, transform)

    def images(self, indices: Tensor) -> Tensor:
        """Images of some numbers (B,), uint8 (B, 3, image_size, image_size)."""
        return torch.stack([self.image(number) for number in indices.tolist()])

    def size(self, number: int) -> tuple[int, int]:
        """Width and height of the undecoded image."""
        return self._read(number, lambda image: image.size)

    def pixels(self, number: int, transform: "Callable[[Image.Image], Image.Image] | None" = None) -> Tensor:
        """Decode one image, as `image` does."""
        # A note of the camera on how it was held is not followed: label maps, and other training tools, do not.
        from torchvision.transforms.v2 import functional as transforms

        def square(image: "Image.Image") -> Tensor:
            rgb = to_rgb(image)
            if transform is not None:
                return transforms.pil_to_tensor(transform(rgb))
            pixels = transforms.resize(transforms.pil_to_tensor(rgb), [self.resize], antialias=True)
            return transforms.center_crop(pixels, [self.image_size, self.image_size])

        return self._read(number, square)

    def _read(self, number: int, use: "Callable[[Image.Image], _T]") -> _T:
        row = int(self.rows[number])
        # Damage reaches the library as errors of many kinds.
        with refusing(f"image {self.source.describe(row)} cannot be read ({{}})"), self.source.open(row) as image:
            return use(image)


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Decode an image to mode RGB: grey becomes colour, transparency is dropped, of 16 bits the upper 8 are kept."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        # The library's own conversion cuts at 255: nearly everything would be white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise ValueError(f"its pixels are of mode {image.mode}; allowed: 8 or 16 bits a channel")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # in one step the library would warn
    return image.convert("RGB")


def decoded(split: DecodedSplit) -> tuple[ArraySplit, list[str]]:
    """The same images in memory, and a line for each that cannot be read."""
    out = torch.zeros(len(split), 3, split.image_size, split.image_size, dtype=torch.uint8)
    lines: list[str] = []
    parts = chunks(range(len(split)), _CHUNK)
    for part, (images, unreadable) in zip(parts, read_ahead(partial(_pixels, split), parts), strict=True):
        out[part[0] : part[-1] + 1] = images
        lines += unreadable
    return ArraySplit(out, split.labels), lines


def faults(split: DecodedSplit, *, verify: bool) -> list[str]:
    """A line for each image that cannot be decoded (``verify``) or, where that is quick, opened."""
    if not (verify or split.source.quick_to_open):
        return []
    return problems(split.pixels if verify else split.size, len(split))


def common_size(split: DecodedSplit) -> int | None:
    """The side of the images, None if they are not square and of one size; unreadable ones play no part."""
    common: int | None = None
    for number in range(len(split)):
        size = attempt(split.size, number)
        if isinstance(size, str):
            continue
        if size[0] != size[1] or common not in {None, size[0]}:
            return None
        common = size[0]
    return common or _USUAL_SIZE


def with_sides(
    name: str, splits: Sequence[DecodedSplit], *, image_size: int | None, resize: int | None, imagenet: bool = False
) -> list[DecodedSplit]:
    """The splits of data set ``name`` with checked sides; None is what is usual, or the size of the images."""
    for option, value in (("image_size", image_size), ("resize", resize)):
        if value is not None:
            check_integer(f"option {option!r} of data {name!r}", value)
    size = image_size if image_size or imagenet else common_size(splits[0])
    if size is None and not imagenet:
        cut = f"each is cut to {_USUAL_SIZE} x {_USUAL_SIZE} pixels; the data option image_size chooses another side"
        message = f"images of data {name!r} are not all square and of one size: {cut}"
        warnings.warn(message, PathexWarning, stacklevel=4)
    size = size or _USUAL_SIZE
    short = resize or (round(size * 256 / 224) if imagenet else size)
    if short < size:
        raise InvalidInput(f"option 'resize' of data {name!r} must be at least image_size={size}, got {short}")
    return [replace(split, image_size=size, resize=short) for split in splits]


def _pixels(split: DecodedSplit, numbers: Sequence[int]) -> tuple[Tensor, list[str]]:
    blank = torch.zeros(3, split.image_size, split.image_size, dtype=torch.uint8)
    found = [attempt(split.pixels, number) for number in numbers]
    images = [blank if isinstance(one, str) else one for one in found]
    return torch.stack(images), [line for line in found if isinstance(line, str)]
