"""Images that are decoded when they are asked for."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from pathex.data._images import ArraySplit
from pathex.data._pixels import resized, square
from pathex.errors import InvalidInput

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "IMAGENET_SIZE",
    "Cut",
    "DecodedSplit",
    "check_integers",
    "common_size",
    "faults",
    "reading_pool",
    "reading_threads",
    "to_rgb",
]

IMAGENET_SIZE = 224
"""Side of images whose own size says nothing."""

Cut = Callable[[int, int], tuple[int, int, int, int]]
"""From height and width of an image to top, left, height and width of the part to keep."""

_CHUNK = 256
_Self = TypeVar("_Self", bound="DecodedSplit")
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class DecodedSplit(ABC):
    """Labelled images that are decoded when they are asked for, each as an RGB square.

    Attributes:
        labels: Class of each image, int64 (N,).
        image_size: Side of the decoded images, in pixels.
        resize: Short side to which an image is brought before a square is cut from its centre, in pixels.
    """

    labels: Tensor
    image_size: int
    resize: int

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def open(self, number: int) -> "Image.Image":
        """Open an image; pixels are read when they are first used.

        Args:
            number: Number of the image.
        """

    @abstractmethod
    def describe(self, number: int) -> str:
        """Where an image comes from, for messages.

        Args:
            number: Number of the image.
        """

    @abstractmethod
    def fault(self, number: int) -> str | None:
        """What can be found wrong with an image without decoding it.

        Args:
            number: Number of the image.

        Returns:
            One line, or None.
        """

    @abstractmethod
    def subset(self: _Self, rows: Tensor, labels: Tensor) -> _Self:
        """Some of the images, under other labels.

        Args:
            rows: Numbers of the images, int64 (M,).
            labels: Their classes, int64 (M,).
        """

    def with_sides(self: _Self, image_size: int, resize: int) -> _Self:
        """The same images at another size.

        Args:
            image_size: Side of the decoded images, in pixels.
            resize: Short side before the square is cut out, in pixels.

        Returns:
            A split of its own.
        """
        return replace(self, image_size=image_size, resize=resize)

    def image(self, number: int, cut: Cut | None = None) -> Tensor:
        """Decode one image.

        Args:
            number: Number of the image.
            cut: The part of the whole image to resize; None is the usual square from the centre.

        Returns:
            uint8 (3, image_size, image_size).

        Raises:
            InvalidInput: If the image cannot be read.
        """
        try:
            return self._image(number, cut)
        except InvalidInput as error:
            raise InvalidInput(f"{error}; verify=True looks for such images when the data are loaded") from error

    def images(self, indices: Tensor) -> Tensor:
        """Decode images: RGB, the short side resized to ``resize``, then a square cut from the centre.

        Args:
            indices: Numbers of the images, int64 (B,).

        Returns:
            Images, uint8 (B, 3, image_size, image_size).
        """
        out = torch.empty(len(indices), 3, self.image_size, self.image_size, dtype=torch.uint8)

        def fill(place: int, number: int) -> None:
            out[place] = self.image(number)

        with reading_pool() as pool:
            list(pool.map(fill, range(len(indices)), indices.tolist()))
        return out

    def size(self, number: int) -> tuple[int, int]:
        """Width and height of the undecoded image.

        Args:
            number: Number of the image.

        Returns:
            Both, in pixels.
        """

        def width_and_height() -> tuple[int, int]:
            with self.open(number) as image:
                return image.size

        return self._read(number, width_and_height)

    def decoded(self) -> tuple[ArraySplit, list[str]]:
        """Decode everything once.

        Returns:
            The same images in memory, and a line for each that cannot be read.
        """
        out = torch.empty(len(self), 3, self.image_size, self.image_size, dtype=torch.uint8)

        def fill(number: int) -> str | None:
            try:
                out[number] = self._image(number)
            except InvalidInput as error:
                return str(error)
            return None

        return ArraySplit(out, self.labels), list(_lines(fill, len(self)))

    def fault_in_pixels(self, number: int) -> str | None:
        """What is wrong with an image when it is decoded.

        Args:
            number: Number of the image.

        Returns:
            One line, or None.
        """
        try:
            self._image(number)
        except InvalidInput as error:
            return str(error)
        return None

    def _image(self, number: int, cut: Cut | None = None) -> Tensor:
        def decoded() -> Tensor:
            with self.open(number) as image:
                rgb = to_rgb(image)
                if cut is not None:
                    top, left, rows, columns = cut(rgb.height, rgb.width)
                    rgb = rgb.crop((left, top, left + columns, top + rows))
                return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)

        pixels, side = self._read(number, decoded), self.image_size
        return square(pixels, self.resize, side) if cut is None else resized(pixels, side, side)

    def _read(self, number: int, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except Exception as error:  # damage reaches the library as errors of many kinds
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise InvalidInput(f"image {self.describe(number)} cannot be read ({reason})") from error


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Decode an image to three channels of 8 bits.

    Grey becomes colour, transparency is dropped (what lies below it shows), and of 16 bits the upper 8 are kept. A
    note of the camera on how it was held is not followed: label maps, and the tools that others train with, do not.

    Args:
        image: The image.

    Returns:
        The same in mode RGB.

    Raises:
        ValueError: If the range of its values is unknown (32-bit integers, floating point).
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        # The library's own conversion cuts at 255: nearly everything would be white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise ValueError(f"its pixels are of mode {image.mode}; allowed: 8 or 16 bits a channel")
    elif image.mode == "RGB":
        image.load()
        return image  # conversion would copy it
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # in one step the library would warn
    return image.convert("RGB")


def faults(split: DecodedSplit, *, verify: bool) -> list[str]:
    """Look for images that will not do, before training begins.

    Args:
        split: The images.
        verify: Whether to decode them all; otherwise only what :meth:`DecodedSplit.fault` sees.

    Returns:
        A line for each, in order.
    """
    return list(_lines(split.fault_in_pixels if verify else split.fault, len(split)))


def _lines(look: Callable[[int], str | None], count: int) -> Iterator[str]:
    def chunk(start: int) -> list[str]:
        return [line for number in range(start, min(start + _CHUNK, count)) if (line := look(number)) is not None]

    with reading_pool() as pool:
        for lines in pool.map(chunk, range(0, count, _CHUNK)):
            yield from lines


def common_size(split: DecodedSplit) -> int:
    """The side of the images if they are square and all of one size, else 224.

    Args:
        split: The images; those that cannot be read play no part.

    Returns:
        The side, in pixels.
    """
    common: int | None = None
    for number in range(len(split)):
        try:
            width, height = split.size(number)
        except InvalidInput:
            continue
        if width != height or common not in {None, width}:
            return IMAGENET_SIZE
        common = width
    return common or IMAGENET_SIZE


def reading_threads() -> int:
    """Threads that decode images in this process: the cores it may use, shared with its siblings on the machine.

    Returns:
        At least 2, as one often waits for the disk, and at most 32, as what they do in Python itself they do in turns.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    siblings = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return min(32, max(2, cores // (int(siblings) if siblings.isdigit() and int(siblings) else 1)))


@contextmanager
def reading_pool(threads: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Threads that read images side by side: decoding and resizing let go of Python's lock.

    PyTorch works alone in each of them. Otherwise it would start a team of threads in every one, to copy an image.

    Args:
        threads: How many; None is :func:`reading_threads`.

    Yields:
        The pool. What is still waiting when it closes is dropped.
    """
    # The number of PyTorch's threads is each thread's own, but the last one that was set is where a new thread begins,
    # and one that has not used it yet, such as this, if it did not ask.
    torch.get_num_threads()
    pool = ThreadPoolExecutor(threads or reading_threads(), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(torch.get_num_threads())


def check_integers(name: str, **options: tuple[object, int]) -> None:
    """Check options that are whole numbers or None.

    Args:
        name: Name of the data set, for messages.
        **options: Value and least value of each option.

    Raises:
        InvalidInput: If one is something else.
    """
    for option, (value, least) in options.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise InvalidInput(f"option {option!r} of data {name!r} must be an integer from {least} on, got {value!r}")
