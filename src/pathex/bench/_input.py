"""Images per second on their way into training: from files, against bare decoding, and from memory.

Each row is one way to make the batches of an epoch. All ways of one kind take turns, pass by pass, so that whatever
else the machine does falls on all of them alike.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pathex.bench._measuring import now, quartiles
from pathex.bench._suite import Bench, Row, Suite
from pathex.data import ArraySplit, DecodedSplit, ImageData, default_workers, load
from pathex.errors import InvalidInput
from pathex.train import Feed

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SUITE"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_QUALITY = 90
_SMALL = 32  # side of the images in memory, in pixels
_CLASSES = 10
_OF_FILES = ("none", "flip", "resized-crop")

Pass = Callable[[], Iterable[object]]
"""One epoch: what it yields was made for one batch."""


@dataclass(frozen=True)
class _Case:
    name: str
    source: str
    workers: int | None
    augment: str
    images: int
    run: Pass


def _rows(bench: Bench, options: Mapping[str, Any]) -> Iterator[Row]:
    workers = tuple(dict.fromkeys(options["workers"] or (0, 1, default_workers())))
    for name, least in (("images", 2), ("batch_size", 2), ("image_size", 1), ("resident", 2)):
        if options[name] < least:
            raise InvalidInput(f"--{name.replace('_', '-')} must be at least {least}, got {options[name]}")
    if options["augment"] not in _OF_FILES:
        raise InvalidInput(f"--augment must be one of {', '.join(_OF_FILES)}, got {options['augment']!r}")
    if min(workers) < 0:
        raise InvalidInput(f"--workers must be at least 0, got {min(workers)}")
    with ExitStack() as stack:
        folder = options["folder"]
        if not folder:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pathex-bench-"))
            bench.say(f"writing {options['images']} images")
            _write_images(Path(folder), options["images"], options["width"], options["height"], bench.seed)
        bench.say("from files")
        yield from _measured(bench, _from_files(bench, folder, workers, options))
    bench.say("from memory")
    yield from _measured(bench, _from_memory(bench, workers, options))


def _from_files(bench: Bench, folder: str, workers: tuple[int, ...], options: Mapping[str, Any]) -> list[_Case]:
    side, size = options["image_size"], options["batch_size"]
    data = load(f"imagefolder:{folder}", image_size=side, in_memory=0, mean=list(_MEAN), std=list(_STD))
    split = data.train
    if not isinstance(split, DecodedSplit):
        raise InvalidInput(f"--folder {folder!r} holds no images that need decoding")
    crop = options["augment"]
    cases = []
    for count in workers:
        feed = Feed(data, split, device=bench.device, batch_size=size, augment=crop, workers=count)
        plain = _plain_loader(_Decoded(split, _recipe(crop, side, 0)), size, count)
        passes: dict[str, tuple[str, Pass]] = {
            "decoding": ("none", _decoding(split, count)),
            "feed": (crop, _epochs(feed, bench.seed)),
            "loader": (crop, _moved(plain, bench.device)),
        }
        cases += [_Case(name, "files", count, kind, feed.images, run) for name, (kind, run) in passes.items()]
    return cases


def _from_memory(bench: Bench, workers: tuple[int, ...], options: Mapping[str, Any]) -> list[_Case]:
    count, size = options["resident"], options["batch_size"]
    generator = torch.Generator().manual_seed(bench.seed)
    pixels = torch.randint(256, (count, 3, _SMALL, _SMALL), dtype=torch.uint8, generator=generator)
    split = ArraySplit(pixels, torch.arange(count) % _CLASSES)
    names = tuple(map(str, range(_CLASSES)))
    data = ImageData("random", split, split, _CLASSES, names, torch.tensor(_MEAN), torch.tensor(_STD), "crop-flip")
    cases = []
    for kind in ("none", "flip", "crop-flip", "resized-crop"):
        feed = Feed(data, split, device=bench.device, batch_size=size, augment=kind)
        cases.append(_Case("feed", "memory", None, kind, count, _epochs(feed, bench.seed)))
    for number in workers:
        plain = _plain_loader(_Held(split, _recipe("crop-flip", _SMALL, 4)), size, number)
        cases.append(_Case("loader", "memory", number, "crop-flip", count, _moved(plain, bench.device)))
    return cases


def _measured(bench: Bench, cases: list[_Case]) -> Iterator[Row]:
    """A row for each case; a first pass, in which processes and caches get going, does not count."""
    seconds: list[list[float]] = [[] for _ in cases]
    for turn in range(bench.repeats + 1):
        for case, own in zip(cases, seconds, strict=True):
            start = now(bench.device)
            for _ in case.run():
                pass
            if turn:
                own.append(now(bench.device) - start)
    rows = []
    for case, own in zip(cases, seconds, strict=True):
        low, middle, high = quartiles(own)
        rates = {"images_per_second": case.images / middle, "low": case.images / high, "high": case.images / low}
        about = {"source": case.source, "case": case.name, "workers": case.workers, "augment": case.augment}
        rows.append({**about, "images": case.images, **{name: round(rate, 1) for name, rate in rates.items()}})
    yield from _with_ratios(rows)


def _with_ratios(rows: list[Row]) -> list[Row]:
    """The rows with ratios to bare decoding and to the plain DataLoader, each with as many workers."""
    # What lies in memory needs no workers: it is compared with the fastest DataLoader that changes images alike.
    out = []
    for row in rows:
        others = [other for other in rows if row["workers"] in {None, other["workers"]}]
        limits = [other["images_per_second"] for other in others if other["case"] == "decoding"]
        plain = [
            other["images_per_second"]
            for other in others
            if other["case"] == "loader" and other["augment"] == row["augment"]
        ]
        ratios = {"of_decoding": limits, "of_loader": plain}
        out.append({**row, **{name: round(row["images_per_second"] / max(v), 3) for name, v in ratios.items() if v}})
    return out


def _decoding(split: DecodedSplit, workers: int) -> Pass:
    """The files turned into pixels, and nothing else: no input from files can be faster."""

    def decode(number: int) -> None:
        with split.source.open(int(split.rows[number])) as image:
            image.load()

    def run() -> Iterator[object]:
        if workers == 0:
            yield from map(decode, range(len(split)))
            return
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(decode, range(len(split)))

    return run


def _epochs(feed: Feed, seed: int) -> Pass:
    return lambda: feed.shuffled(seed, 1)


def _moved(loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Pass:
    def run() -> Iterator[object]:
        for images, labels in loader:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    return run


class _Decoded(Dataset[tuple[Tensor, int]]):
    """Files as torchvision's ``ImageFolder`` reads them: one by one, by Pillow, with the transforms of each image."""

    def __init__(self, split: DecodedSplit, recipe: Callable[[Any], Tensor]) -> None:
        self._split, self._recipe, self._labels = split, recipe, split.labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        with self._split.source.open(int(self._split.rows[number])) as image:
            return self._recipe(image.convert("RGB")), self._labels[number]


class _Held(Dataset[tuple[Tensor, int]]):
    """Images in memory, with the transforms of each image."""

    def __init__(self, split: ArraySplit, recipe: Callable[[Any], Tensor]) -> None:
        self._pixels, self._recipe, self._labels = split.data, recipe, split.labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self._recipe(self._pixels[number]), self._labels[number]


def _recipe(augment: str, side: int, padding: int) -> Callable[[Any], Tensor]:
    """The same changes by the transforms of torchvision, for one image."""
    from torchvision.transforms import v2

    cuts = {
        "resized-crop": [v2.RandomResizedCrop(side, antialias=True)],
        "crop-flip": [v2.RandomCrop(side, padding=padding)],
        "flip": [v2.Resize(side, antialias=True), v2.CenterCrop(side)],
        "none": [v2.Resize(side, antialias=True), v2.CenterCrop(side)],
    }
    flips = [] if augment == "none" else [v2.RandomHorizontalFlip()]
    recipe: Callable[[Any], Tensor] = v2.Compose(
        [*cuts[augment], *flips, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
    )
    return recipe


def _plain_loader(dataset: Dataset[tuple[Tensor, int]], size: int, workers: int) -> Iterable[tuple[Tensor, Tensor]]:
    return DataLoader(
        dataset,
        batch_size=size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Spawned, never forked: a fork of a process that has threads may hang.
        multiprocessing_context="spawn" if workers else None,
    )


def _write_images(folder: Path, count: int, width: int, height: int, seed: int) -> None:
    """JPEGs with soft shapes and some noise, which take about as many bytes as photographs of their size."""
    from PIL import Image

    draws = np.random.default_rng(seed)
    for number in range(count + 1):
        part, label = ("train", number % 2) if number < count else ("val", 0)
        place = folder / part / str(label)
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draws.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8))
        soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (soft + draws.integers(-12, 13, soft.shape, dtype=np.int16)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(place / f"{number}.jpg", quality=_QUALITY)


def _summary(frame: "pd.DataFrame") -> list[str]:
    lines = []
    for source in ("files", "memory"):
        # Where there is a DataLoader to compare with.
        rows = frame[(frame["source"] == source) & (frame["case"] == "feed") & frame["of_loader"].notna()]
        if rows.empty:
            continue
        best = rows.loc[rows["images_per_second"].idxmax()]
        parts = [f"from {source}: {best['images_per_second']:,.0f} images/s"]
        if source == "files":
            parts.append(f"with {best['workers']:.0f} workers, {best['of_decoding']:.2f} of bare decoding")
        parts.append(f"{best['of_loader']:.3g} times a plain DataLoader")
        lines.append(", ".join(parts))
    return lines


def _plot(frame: "pd.DataFrame", path: Path) -> None:
    from pathex.bench._input_plot import plot

    plot(frame, path)


SUITE = Suite(
    name="input",
    title="images per second: from files against bare decoding, from memory, and through a plain DataLoader",
    defaults=MappingProxyType(
        {
            "folder": "",
            "images": 300,
            "width": 500,
            "height": 375,
            "image_size": 224,
            "augment": "resized-crop",
            "batch_size": 64,
            "workers": (0, 1, default_workers()),
            "resident": 10_000,
        }
    ),
    rows=_rows,
    plot=_plot,
    help=MappingProxyType(
        {
            "folder": "Real images, train/CLASS/* and val/CLASS/*; without it random ones are written for the while.",
            "images": "Random images to write.",
            "width": "Their width in pixels.",
            "height": "Their height in pixels.",
            "image_size": "Side of the squares that come out, in pixels.",
            "augment": "Augmentation of images from files: none, flip or resized-crop.",
            "batch_size": "Images in a batch.",
            "workers": "Threads of the feed, and processes of the DataLoader; 0: none but the one that waits for them.",
            "resident": "Random images of 32 pixels in memory.",
        }
    ),
    summary=_summary,
)
