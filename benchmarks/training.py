"""What the loop of ``pathex run`` costs beside the network, and what a mask costs.

    python -m benchmarks.training --threads 2

Random images of 32 pixels. ``plain`` is the shortest loop there is: images on the device in fixed batches, no order, no
augmentation, no metric. ``dense`` and ``masked`` are the loop of ``pathex run`` with all of these. Cases take turns.
Epochs of two cases differ by more than a mask costs, by chance, so that this is measured by pairs of a few steps, with
it and without, in turn.

| column | meaning |
|---|---|
| `epoch_seconds`, `epoch_low`, `epoch_high` | median and quartiles of an epoch |
| `ratio` | median of ``epoch_seconds`` over that of ``plain``, in the same repeat |
| `mask_share`, `mask_low`, `mask_high` | what a mask adds to a step, as a share of it: quartiles of the pairs |
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.measure import Row, Table, arguments, bars, command, now, problem, quartiles, save
from pathex import Mask, attach
from pathex.data import ArraySplit, ImageData
from pathex.masks import prunable_weights
from pathex.train import Feed, TrainOptions, fabric, fit, memory_format

__all__ = ["main"]

_CLASSES, _SIDE = 10, 32
_STEPS = 3


@dataclass(frozen=True)
class Work:
    """What every case trains: a network to be copied, its mask, and images of bytes."""

    given: argparse.Namespace
    network: nn.Module
    mask: Mask
    pixels: Tensor
    labels: Tensor

    @classmethod
    def of(cls, given: argparse.Namespace) -> "Work":
        """Draw everything from the seed."""
        source = torch.Generator().manual_seed(given.seed)
        shape = (given.images, 3, _SIDE, _SIDE)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=source)
        network, _, _ = problem(given.model, 1, _CLASSES, given.seed, given.device)
        weights = prunable_weights(network).items()
        keep = {name: torch.rand(each.shape, generator=source) > given.sparsity for name, each in weights}
        return cls(given, network, Mask(keep), pixels, torch.arange(given.images) % _CLASSES)

    def stepper(self, *, masked: bool) -> Callable[[Tensor, Tensor], None]:
        """A step of the optimizer, as short as it can be."""
        model = copy.deepcopy(self.network).train()
        layout = memory_format(model)
        model.to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        if masked:
            attach(model, self.mask, optimizer)
        kind, mixed = self.given.device.type, self.given.precision == "bf16-mixed"

        def step(images: Tensor, labels: Tensor) -> None:
            optimizer.zero_grad()
            with torch.autocast(kind, torch.bfloat16, enabled=mixed):
                outputs = model(images.contiguous(memory_format=layout))
            nn.functional.cross_entropy(outputs.float(), labels).backward()
            optimizer.step()

        return step

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """All images on the device, normalised."""
        device, size = self.given.device, self.given.batch_size
        images = self.pixels.to(device).float() / 128 - 1
        return list(zip(images.split(size), self.labels.to(device).split(size), strict=True))


def plain_epoch(work: Work) -> float:
    """Seconds of an epoch of the shortest loop there is."""
    step, batches = work.stepper(masked=False), work.batches()
    timer = Timer("for batch in batches: step(*batch)", globals=locals(), num_threads=work.given.threads)
    return float(timer.timeit(work.given.epochs).mean)


def epoch(work: Work, *, masked: bool) -> float:
    """Seconds of an epoch of ``pathex run``, after the first."""
    given, machine = work.given, fabric(work.given.device.type, work.given.precision)
    split, half = ArraySplit(work.pixels, work.labels), torch.full((3,), 0.5)
    data = ImageData("random", split, split, _CLASSES, tuple(map(str, range(_CLASSES))), half, half, "crop-flip")
    feed = Feed(data, split, device=machine.device, batch_size=given.batch_size, augment="crop-flip")
    ends: list[float] = []

    def hear(kind: str, _: dict[str, Any]) -> None:
        if kind == "epoch":
            ends.append(now(machine.device))

    with tempfile.TemporaryDirectory() as folder:
        fit(
            copy.deepcopy(work.network),
            feed,
            TrainOptions(epochs=1 + given.epochs, batch_size=given.batch_size),
            fabric=machine,
            loss=nn.CrossEntropyLoss(),
            metric=MulticlassAccuracy(_CLASSES, average="micro", validate_args=False),
            folder=Path(folder),
            prepare=(lambda model, optimizer: attach(model, work.mask, optimizer) and None) if masked else None,
            on_event=hear,
        )
    return (ends[-1] - ends[0]) / given.epochs


def mask_shares(work: Work) -> list[float]:
    """What a mask adds to a step, as shares of it."""
    images, labels = work.batches()[0]
    timers = []
    for masked in (False, True):
        names = {"step": work.stepper(masked=masked), "images": images, "labels": labels}
        timers.append(Timer("step(images, labels)", globals=names, num_threads=work.given.threads))
    shares = []
    for pair in range(work.given.pairs):
        order = (1, 0) if pair % 2 else (0, 1)
        seconds = {which: timers[which].timeit(_STEPS).mean for which in order}
        shares.append(seconds[1] / seconds[0] - 1)
    return shares


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the rows and draw them."""
    parser = arguments(__doc__, "training")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--images", type=int, default=512, help="in an epoch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2, help="that are measured, after a first one")
    parser.add_argument("--sparsity", type=float, default=0.98)
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=12, help="of groups of steps, with a mask and without, a repeat")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    work = Work.of(given)
    cases: dict[str, Callable[[], float]] = {
        "plain": lambda: plain_epoch(work),
        "dense": lambda: epoch(work, masked=False),
        "masked": lambda: epoch(work, masked=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    shares: list[float] = []
    for _ in range(given.repeats):
        for name, case in cases.items():
            seconds[name].append(case())
        shares += mask_shares(work)
    table = Table(given.out, {k: v for k, v in vars(given).items() if k != "out"}, given.device, given.threads)
    for name, own in seconds.items():
        row: Row = {"case": name, "model": given.model, "images": given.images, "batch_size": given.batch_size}
        row |= dict(zip(("epoch_low", "epoch_seconds", "epoch_high"), quartiles(own), strict=True))
        row["ratio"] = quartiles([mine / plain for mine, plain in zip(own, seconds["plain"], strict=True)])[1]
        if name == "masked":
            row |= dict(zip(("mask_low", "mask_share", "mask_high"), quartiles(shares), strict=True))
        table.add(row)
    save(table.path, bars(table.frame(), "case", "epoch_seconds", "seconds an epoch", ("epoch_low", "epoch_high")))
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))
