"""Images with label maps: what segments, how both are cut together, and which of them scores see."""

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pathex.data._decoding import reading_pool, to_rgb
from pathex.data._pixels import upload
from pathex.data._selection import PruningSet
from pathex.errors import InvalidInput, PathexWarning

__all__ = ["IGNORED", "Frame", "PairFiles", "SegmentationData", "check_pairs", "choose_pairs", "pair_pruning_set"]

IGNORED = 255
"""Label of pixels that belong to no class: borders between objects, and padding."""

Pair = tuple[Tensor, Tensor]
"""An image, uint8 (3, H, W), and its label map, uint8 (H, W)."""


@dataclass(frozen=True, eq=False)
class PairFiles:
    """Image files and the files of their label maps, decoded when they are asked for.

    Attributes:
        image_files: The images.
        label_files: The label map of each: a picture whose pixel values (or palette indices) are classes.
        num_classes: Number of classes; other labels than these and :data:`IGNORED` are errors.
        image_size: Short side to which images and labels are brought, in pixels; None leaves them as they are.
    """

    image_files: tuple[str, ...]
    label_files: tuple[str, ...]
    num_classes: int
    image_size: int | None = None

    def __len__(self) -> int:
        return len(self.image_files)

    def pair(self, number: int) -> Pair:
        """Decode an image and its labels.

        Args:
            number: Which.

        Returns:
            Image, uint8 (3, H, W), and labels, uint8 (H, W).

        Raises:
            InvalidInput: If a file cannot be read, sizes differ, or a label is no class.
        """
        from PIL import Image
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional as transforms

        path = self.image_files[number]
        try:
            with Image.open(path) as opened:
                image = transforms.pil_to_tensor(to_rgb(opened))
        except Exception as error:  # damage reaches the library as errors of many kinds
            raise InvalidInput(_damaged(path, error)) from error
        labels = self._decoded_labels(number)
        if image.shape[1:] != labels.shape:
            raise InvalidInput(_other_size(path, tuple(image.shape[:0:-1]), tuple(labels.shape[::-1])))
        if self.image_size is None:
            return image, labels
        resized = transforms.resize(tv_tensors.Image(image), [self.image_size], antialias=True)
        return resized.as_subclass(Tensor), self._resized(labels)

    def labels(self, number: int) -> Tensor:
        """Decode labels alone.

        Args:
            number: Which.

        Returns:
            Labels, uint8 (H, W), as `pair` gives them.
        """
        return self._resized(self._decoded_labels(number))

    def _decoded_labels(self, number: int) -> Tensor:
        from PIL import Image

        path = self.label_files[number]
        try:
            with Image.open(path) as opened:
                mode, labels = opened.mode, np.array(opened)
        except Exception as error:
            raise InvalidInput(_damaged(path, error)) from error
        if mode not in {"P", "L"}:
            raise InvalidInput(
                f"label map {path!r} is of mode {mode}; allowed: one byte a pixel (palette or greyscale)"
            )
        wrong = labels[(labels >= self.num_classes) & (labels != IGNORED)]
        if wrong.size:
            raise InvalidInput(
                f"label map {path!r} holds label {wrong[0]}; allowed: 0 to {self.num_classes - 1}, and {IGNORED}"
            )
        return torch.from_numpy(labels)

    def _resized(self, labels: Tensor) -> Tensor:
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional as transforms

        if self.image_size is None:
            return labels
        resized: Tensor = transforms.resize(tv_tensors.Mask(labels), [self.image_size]).as_subclass(Tensor)
        return resized


@dataclass(frozen=True, eq=False)
class SegmentationData:
    """A data set for semantic segmentation.

    Attributes:
        name: Name it was loaded by.
        train: Training images.
        test: Test images.
        classes: Name of each class.
        mean: Mean of each channel, in [0, 1], float32 (C,).
        std: Standard deviation of each channel, in [0, 1], float32 (C,).
        background: The class of what is none of the others; the pruning set is not balanced by it.
    """

    name: str
    train: PairFiles
    test: PairFiles
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    background: int = 0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return len(self.mean)

    def normalise(self, images: Tensor) -> Tensor:
        """Bring images to mean 0 and standard deviation 1 in each channel.

        Args:
            images: uint8 (B, C, H, W), on any device.

        Returns:
            ``(images / 255 - mean) / std``, float32 (B, C, H, W), on the device of ``images``.
        """
        mean = upload(self.mean, images.device).view(-1, 1, 1)
        std = upload(self.std, images.device).view(-1, 1, 1)
        return images.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)

    def frame(self, crop: int, side: int | None = None) -> "Frame":
        """The square that a network sees of these images.

        Args:
            crop: Side of the window, in pixels.
            side: Side of the square that the window is padded to; None is ``crop``.

        Returns:
            The frame, which pads with the mean colour.
        """
        return Frame(crop, crop if side is None else side, tuple((self.mean * 255).round().int().tolist()))


@dataclass(frozen=True)
class Frame:
    """A square window of an image and its labels, cut alike; what lies outside the image is labelled `IGNORED`.

    Attributes:
        crop: Side of the window, in pixels.
        side: Side of what is returned: networks that need multiples of a number get the window with padding on its
            right and below.
        colour: What images are padded with, for each channel.
    """

    crop: int
    side: int
    colour: tuple[int, ...]

    def centre(self, pair: Pair) -> Pair:
        """The window in the middle.

        Args:
            pair: Image (3, H, W) and labels (H, W).

        Returns:
            Image (3, side, side) and labels (side, side).
        """
        height, width = pair[1].shape
        return self._cut(pair, (height - self.crop) // 2, (width - self.crop) // 2)

    def fitted(self, pair: Pair) -> Pair:
        """The middle of the image after its short side is brought to that of the window.

        Args:
            pair: Image (3, H, W) and labels (H, W).

        Returns:
            Image (3, side, side) and labels (side, side).
        """
        height, width = pair[1].shape
        short = min(height, width)
        return self.centre(_resized(pair, round(height * self.crop / short), round(width * self.crop / short)))

    def drawn(self, pair: Pair, draws: Sequence[float], scales: tuple[float, float]) -> Pair:
        """The image scaled at random, a window at a random place, mirrored left to right with probability 1/2.

        An image smaller than the window lies at a random place inside it.

        Args:
            pair: Image (3, H, W) and labels (H, W).
            draws: Four numbers in [0, 1), for scale, row, column and mirroring.
            scales: The smallest and the largest factor.

        Returns:
            Image (3, side, side) and labels (side, side).
        """
        factor = scales[0] + (scales[1] - scales[0]) * draws[0]
        height, width = pair[1].shape
        pair = _resized(pair, max(1, round(height * factor)), max(1, round(width * factor)))
        top, left = (self._place(size, draw) for size, draw in zip(pair[1].shape, draws[1:3], strict=True))
        return self._cut(pair, top, left, mirrored=draws[3] < 0.5)

    def _place(self, size: int, draw: float) -> int:
        room = size - self.crop
        return min(0, room) + math.floor(draw * (abs(room) + 1))

    def _cut(self, pair: Pair, top: int, left: int, *, mirrored: bool = False) -> Pair:
        """The window whose first pixel is at a place, which may lie outside the image."""
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional as transforms

        height, width = pair[1].shape
        first, last = (max(0, top), max(0, left)), (min(height, top + self.crop), min(width, left + self.crop))
        inside = [*first, last[0] - first[0], last[1] - first[1]]
        before = [first[1] - left, first[0] - top]
        to_window = [*before, left + self.crop - last[1], top + self.crop - last[0]]
        to_side = [0, 0, self.side - self.crop, self.side - self.crop]
        cut = []
        for tensor, fill in ((tv_tensors.Image(pair[0]), list(self.colour)), (tv_tensors.Mask(pair[1]), IGNORED)):
            # transforms.crop alone would pad with zeros, which is a colour and a class.
            window = transforms.pad(transforms.crop(tensor, *inside), to_window, fill=fill)
            window = transforms.horizontal_flip(window) if mirrored else window
            cut.append(transforms.pad(window, to_side, fill=fill).as_subclass(Tensor))
        return cut[0], cut[1]


def check_pairs(split: PairFiles, name: str, *, decode: bool) -> None:
    """Look at every file of a split before anything is done with it.

    Args:
        split: The split.
        name: Name of the data set, for the message.
        decode: Whether files are decoded, which finds damaged ones, or only their headers are read.

    Raises:
        InvalidInput: If files are missing, cannot be read or do not fit each other; names the first and their number.
    """

    def look(number: int) -> str | None:
        try:
            if decode:
                split.pair(number)
            else:
                _check_headers(split.image_files[number], split.label_files[number])
        except InvalidInput as error:
            return str(error)
        return None

    with reading_pool() as pool:
        problems = [problem for problem in pool.map(look, range(len(split))) if problem is not None]
    if problems:
        more = f" (and {len(problems) - 1} more of {len(split)} pairs cannot be used)" if len(problems) > 1 else ""
        raise InvalidInput(f"data {name!r}: {problems[0]}{more}")


def choose_pairs(present: Tensor, wanted: int, generator: torch.Generator) -> list[int]:
    """Draw images so that each class is in enough of them.

    Rare classes draw first. A class draws images that no other class has drawn yet, and where these are too few, those
    drawn already that show it count for it too.

    Args:
        present: Whether an image shows a class, bool (N, K).
        wanted: Images of each class; a class with fewer gets all it has.
        generator: Source of the draw.

    Returns:
        Numbers of the images in random order; at least ``min(wanted, images of the class)`` show each class.
    """
    drawn: set[int] = set()
    counts = present.sum(0)
    for column in counts.argsort(stable=True).tolist():
        members = present[:, column].nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)].tolist()
        drawn.update([member for member in shuffled if member not in drawn][:wanted])
    rows = torch.tensor(sorted(drawn), dtype=torch.long)
    chosen: list[int] = rows[torch.randperm(len(rows), generator=generator)].tolist()
    return chosen


def pair_pruning_set(
    data: SegmentationData, images_per_class: int, seed: int, frame: Frame, indices_from: Tensor
) -> PruningSet:
    """Draw training images so that each class but the background is in the same number of them.

    An image shows a class if a pixel of the window in its middle, which is what scores see, has its label.

    Args:
        data: The data set.
        images_per_class: Images of each class, at least 1; a class that fewer images show gets these, with a warning.
        seed: Seed of the draw, which neither reads nor moves the global generator.
        frame: The window.
        indices_from: Training images that may be drawn, int64 (M,).

    Returns:
        Windows, float32 (N, 3, side, side), and their label maps, int64 (N, side, side), on the CPU.

    Raises:
        InvalidInput: If no image shows any class, or an argument cannot be used.
    """
    if isinstance(images_per_class, bool) or not isinstance(images_per_class, int) or images_per_class < 1:
        raise InvalidInput(f"images_per_class must be a positive integer, got {images_per_class!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InvalidInput(f"seed must be an integer of at least 0, got {seed!r}")
    allowed = indices_from.unique().tolist()

    def shown(number: int) -> Tensor:
        labels = data.train.labels(number)
        blank = torch.zeros(3, *labels.shape, dtype=torch.uint8)
        counts = frame.centre((blank, labels))[1].flatten().bincount(minlength=IGNORED + 1)
        return counts[: data.num_classes] > 0

    with reading_pool() as pool:
        present = torch.stack(list(pool.map(shown, allowed)))
        present[:, data.background] = False
        _warn_short(data, present.sum(0), images_per_class)
        chosen = choose_pairs(present, images_per_class, torch.Generator().manual_seed(seed))
        if not chosen:
            raise InvalidInput(f"data {data.name!r}: no training image shows a class in its middle {frame.crop} pixels")
        indices = [allowed[row] for row in chosen]
        pairs = list(pool.map(lambda number: frame.centre(data.train.pair(number)), indices))
    images, labels = torch.stack([image for image, _ in pairs]), torch.stack([labelled for _, labelled in pairs])
    digest = hashlib.sha256()
    for part in (torch.tensor(indices), images, labels):
        digest.update(part.contiguous().numpy().tobytes())
    return PruningSet(data.normalise(images), labels.long(), indices, digest.hexdigest())


def _warn_short(data: SegmentationData, counts: Tensor, wanted: int) -> None:
    short = [
        f"{name} ({count})"
        for number, (name, count) in enumerate(zip(data.classes, counts.tolist(), strict=True))
        if count < wanted and number != data.background
    ]
    if short:
        message = f"data {data.name!r}: fewer than {wanted} training images for the pruning set show {', '.join(short)}"
        warnings.warn(message, PathexWarning, stacklevel=3)


def _resized(pair: Pair, height: int, width: int) -> Pair:
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as transforms

    image = transforms.resize(tv_tensors.Image(pair[0]), [height, width], antialias=True)
    labels = transforms.resize(tv_tensors.Mask(pair[1]), [height, width])
    return image.as_subclass(Tensor), labels.as_subclass(Tensor)


def _check_headers(image_file: str, label_file: str) -> None:
    sizes = _header_size(image_file), _header_size(label_file)
    if sizes[0] != sizes[1]:
        raise InvalidInput(_other_size(image_file, *sizes))


def _header_size(path: str) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as opened:
            size: tuple[int, int] = opened.size
    except Exception as error:
        raise InvalidInput(_damaged(path, error)) from error
    return size


def _other_size(path: str, size: tuple[int, ...], labels: tuple[int, ...]) -> str:
    return f"image {path!r} is {size[0]} x {size[1]} and its label map {labels[0]} x {labels[1]} pixels"


def _damaged(path: str, error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return f"file {path!r} is missing"
    return f"file {path!r} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
