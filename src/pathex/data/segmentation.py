"""Images with label maps: what segments, and which of them scores see."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pathex.data.images import normalise
from pathex.data.selection import PruningSet, content_hash, seeded
from pathex.data.splits import to_rgb
from pathex.data.workers import chunks, problems, read_ahead
from pathex.errors import InvalidInput, PathexWarning, check_integer, refusing
from pathex.files import open_image

IGNORED = 255
"""Label of pixels that belong to no class: borders between objects, and padding."""

Sample = tuple[Tensor, Tensor]
"""An image, uint8 (3, H, W), and its label map, uint8 (H, W)."""

_CHUNK = 16


@dataclass(frozen=True)
class Window:
    """A square window of an image and its labels; what lies outside the image is labelled `IGNORED`.

    Each method takes an image (3, H, W) and labels (H, W), and returns (3, side, side) and (side, side).

    Attributes:
        crop: Side of the window, in pixels.
        side: Side of what is returned: networks that need multiples of a number get the window with padding on its
            right and below.
        colour: What images are padded with, for each channel.
    """

    crop: int
    side: int
    colour: tuple[int, ...]

    def centre(self, sample: Sample) -> Sample:
        """The window in the middle."""
        from torchvision.transforms import v2

        height, width = sample[1].shape
        rows, columns = max(0, self.crop - height), max(0, self.crop - width)
        padded = v2.Pad([columns, rows, columns, rows], fill=self._fill())(*_typed(sample))
        top, left = ((length - self.crop) // 2 for length in padded[1].shape)
        return self._padded(*(v2.functional.crop(part, top, left, self.crop, self.crop) for part in padded))

    def fitted(self, sample: Sample) -> Sample:
        """The middle of the image after its short side is brought to that of the window."""
        return self.centre(_scaled(sample, self.crop / min(sample[1].shape)))

    def random(self, sample: Sample, scales: tuple[float, float]) -> Sample:
        """Image scaled by a factor in ``scales``, a window at any place, maybe mirrored: by the global generator."""
        from torchvision.transforms import v2

        crop = v2.RandomCrop(self.crop, pad_if_needed=True, fill=self._fill())
        scaled = _scaled(sample, float(torch.empty(()).uniform_(*scales)))
        return self._padded(*v2.RandomHorizontalFlip()(*crop(*_typed(scaled))))

    def _padded(self, *sample: Tensor) -> Sample:
        from torchvision.transforms import v2

        margin = self.side - self.crop
        image, labels = v2.Pad([0, 0, margin, margin], fill=self._fill())(*sample)
        return image.as_subclass(Tensor), labels.as_subclass(Tensor)

    def _fill(self) -> Mapping[Any, Any]:
        from torchvision import tv_tensors

        return {tv_tensors.Image: list(self.colour), tv_tensors.Mask: IGNORED}


def _typed(sample: Sample) -> tuple[Any, Any]:
    """The sample as torchvision's transforms tell images and label maps apart."""
    from torchvision import tv_tensors

    return tv_tensors.Image(sample[0]), tv_tensors.Mask(sample[1])


def _scaled(sample: Sample, factor: float) -> Sample:
    from torchvision.transforms.v2 import functional as transforms

    size = [max(1, round(length * factor)) for length in sample[1].shape]
    image, labels = (transforms.resize(part, size, antialias=True) for part in _typed(sample))
    return image, labels


@dataclass(frozen=True, eq=False)
class SegmentationSplit:
    """Image files and the files of their label maps, decoded when they are asked for.

    Attributes:
        image_files: The images.
        label_files: The label map of each: a picture whose pixel values (or palette indices) are classes.
        num_classes: Number of classes; other labels than these and `IGNORED` are errors.
        image_size: Short side to which images and labels are brought, in pixels; None leaves them as they are.
        colours: The label of each colour (R, G, B), where colours tell labels: of palettes in another order, or of
            pixels in RGB; None reads palette indices whatever their colours.
    """

    image_files: tuple[str, ...]
    label_files: tuple[str, ...]
    num_classes: int
    image_size: int | None = None
    colours: Mapping[tuple[int, ...], int] | None = None

    def __len__(self) -> int:
        return len(self.image_files)

    def sample(self, number: int) -> Sample:
        """Image, uint8 (3, H, W), and labels, uint8 (H, W); whatever is wrong with them names the file."""
        from torchvision.transforms.v2 import functional as transforms

        path = self.image_files[number]
        with _opened(path) as opened:
            image = transforms.pil_to_tensor(to_rgb(opened))
        labels = self._decoded_labels(number)
        _check_sizes(path, image.shape[:0:-1], labels.shape[::-1])
        if self.image_size is not None:
            image = transforms.resize(image, [self.image_size], antialias=True)
        return image, self._resized(labels)

    def labels(self, number: int) -> Tensor:
        """Labels alone, uint8 (H, W), as `sample` gives them."""
        return self._resized(self._decoded_labels(number))

    def _decoded_labels(self, number: int) -> Tensor:
        path = self.label_files[number]
        with _opened(path) as opened:
            mode, labels, palette = opened.mode, np.array(opened), opened.getpalette() or []
        if self.colours is not None and mode in {"P", "RGB"}:
            labels = _by_colour(path, labels, palette, self.colours)
        elif mode not in {"P", "L"}:
            raise InvalidInput(f"label map {path!r} is of mode {mode}; allowed: one byte a pixel, P or L")
        wrong = labels[(labels >= self.num_classes) & (labels != IGNORED)]
        if wrong.size:
            raise InvalidInput(f"{path!r} holds label {wrong[0]}; allowed: 0 to {self.num_classes - 1}, and {IGNORED}")
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
        augment: Augmentation of training images unless another is named, with its own options.
    """

    augment: ClassVar[str] = "scale-crop"
    augment_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    name: str
    train: SegmentationSplit
    test: SegmentationSplit
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
        """``(images / 255 - mean) / std`` of uint8 images (B, C, H, W), float32, where they are."""
        return normalise(images, self.mean, self.std)

    def window(self, crop: int, side: int | None = None) -> Window:
        """The square of ``side`` (None: ``crop``) pixels that a network sees, padded with the mean colour."""
        return Window(crop, crop if side is None else side, tuple((self.mean * 255).round().int().tolist()))


def check_samples(split: SegmentationSplit, *, decode: bool) -> None:
    """Look at every file of a split: decode it, or read its header only."""
    found = problems(split.sample if decode else partial(_compare_headers, split), len(split))
    if found:
        more = f" (and {len(found) - 1} more of {len(split)} pairs cannot be used)" if len(found) > 1 else ""
        raise InvalidInput(f"{found[0]}{more}")


def choose_images(present: Tensor, wanted: int, generator: torch.Generator) -> list[int]:
    """Draw images so that each class, which ``present`` (N, K) tells, is in ``wanted`` of them or in all it has."""
    # Rare classes draw first. A class draws images that no other has drawn yet, and where these are too few, those
    # drawn already that show it count for it too.
    drawn: set[int] = set()
    for column in present.sum(0).argsort(stable=True).tolist():
        members = present[:, column].nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)].tolist()
        drawn.update([member for member in shuffled if member not in drawn][:wanted])
    rows = torch.tensor(sorted(drawn), dtype=torch.long)
    chosen: list[int] = rows[torch.randperm(len(rows), generator=generator)].tolist()
    return chosen


def segmentation_pruning_set(
    data: SegmentationData, images_per_class: int, seed: int, window: Window, indices_from: Tensor
) -> PruningSet:
    """Draw training images so that each class but the background is in the same number of them; see `pruning_set`.

    An image shows a class if a pixel of the window in its middle, which is what scores see, has its label. A class that
    fewer images show gets these, with a warning.

    Returns:
        Windows, float32 (N, 3, side, side), and their label maps, int64 (N, side, side), on the CPU.

    Raises:
        InvalidInput: If no image shows any class, or an argument cannot be used.
    """
    check_integer("images_per_class", images_per_class)
    generator = seeded(seed)
    allowed = indices_from.unique().tolist()
    present = torch.cat([*read_ahead(partial(_shown, data.train, window), chunks(allowed, _CHUNK))])
    present[:, data.background] = False
    short = [
        f"{name} ({count})"
        for number, (name, count) in enumerate(zip(data.classes, present.sum(0).tolist(), strict=True))
        if count < images_per_class and number != data.background
    ]
    if short:
        fewer = f"fewer than {images_per_class} training images for the pruning set show"
        warnings.warn(f"data {data.name!r}: {fewer} {', '.join(short)}", PathexWarning, stacklevel=2)
    indices = [allowed[row] for row in choose_images(present, images_per_class, generator)]
    if not indices:
        raise InvalidInput(f"data {data.name!r}: no training image shows a class in its middle {window.crop} pixels")
    samples = [window.centre(data.train.sample(number)) for number in indices]
    images, labels = (torch.stack(parts) for parts in zip(*samples, strict=True))
    digest = content_hash(torch.tensor(indices), images, labels)
    return PruningSet(data.normalise(images), labels.long(), indices, digest)


def _shown(split: SegmentationSplit, window: Window, numbers: Sequence[int]) -> Tensor:
    """Whether each class is in the middle of each image, bool (N, K)."""
    rows = []
    for number in numbers:
        labels = split.labels(number)
        blank = torch.zeros(3, *labels.shape, dtype=torch.uint8)
        seen = window.centre((blank, labels))[1]
        rows.append(seen.flatten().bincount(minlength=IGNORED + 1)[: split.num_classes] > 0)
    return torch.stack(rows)


def _by_colour(path: str, pixels: Any, palette: list[int], colours: Mapping[tuple[int, ...], int]) -> Any:
    """The label of each pixel, a place in the palette (H, W) or RGB (H, W, 3), which its colour tells."""
    if pixels.ndim == 3:
        codes, places = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
        table, pixels = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1), places.reshape(pixels.shape[:2])
    else:
        table = np.resize(np.array(palette, int), (256, 3))
        used = np.unique(pixels)
        if (table[used] == used[:, None]).all():  # a grey scale has no colours to tell labels by
            return pixels
    labels = np.zeros(len(table), np.uint8)
    for place in np.unique(pixels):
        if (colour := tuple(table[place].tolist())) not in colours:
            raise InvalidInput(f"label map {path!r} has colour {colour}, which stands for no class of the data set")
        labels[place] = colours[colour]
    return labels[pixels]


def _compare_headers(split: SegmentationSplit, number: int) -> None:
    sizes = []
    for path in (split.image_files[number], split.label_files[number]):
        with _opened(path) as opened:
            sizes.append(opened.size)
    _check_sizes(split.image_files[number], *sizes)


def _check_sizes(path: str, size: Sequence[int], labels: Sequence[int]) -> None:
    if tuple(size) != tuple(labels):
        raise InvalidInput(f"{path!r} is {size[0]} x {size[1]} and its label map {labels[0]} x {labels[1]} pixels")


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    with refusing(f"file {path!r} cannot be read ({{}})"), open_image(path) as image:
        yield image
