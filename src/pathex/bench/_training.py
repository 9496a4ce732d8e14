"""The suite ``training``: what the loop costs beside the network, what a mask costs, and many tickets at once."""

import copy
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pathex import models
from pathex.attaching import attach
from pathex.bench._figures import INK, save, styled
from pathex.bench._measuring import now, quartiles
from pathex.bench._suite import ERROR, Bench, Row, Suite
from pathex.capturing import cuda_graph
from pathex.data import ArraySplit, ImageData
from pathex.errors import PathexError
from pathex.masks import Mask
from pathex.prunable import prunable_weights
from pathex.sweep import SweepConfig, plan
from pathex.sweep.executors import create
from pathex.sweep.work import ENDED, Job
from pathex.train import Feed, TrainOptions, fabric, fit, memory_format

__all__ = ["SUITE"]

_CLASSES, _SIDE = 10, 32
_EPOCHS = 4
"""Epochs of tickets that train side by side: the first and the last ones are not all at work."""

_PLAIN, _MASKED = "plain loop", "pathex, masked"
_PAIRS = 12
"""Pairs of groups of steps, with a mask and without, in each repeat; and the steps of a group."""

_GROUP = 3
_COLOURS = MappingProxyType({_PLAIN: "#8a8f98"})


@dataclass(frozen=True)
class _Work:
    """What every case trains.

    Attributes:
        bench: Where and how thoroughly.
        options: Options of the suite.
        pixels: Random images, uint8 (N, 3, 32, 32).
        labels: Their classes, int64 (N,).
        network: The network on the CPU, to be copied.
    """

    bench: Bench
    options: Mapping[str, Any]
    pixels: Tensor
    labels: Tensor
    network: nn.Module

    @property
    def machine(self) -> str:
        return self.bench.device.type


def _rows(bench: Bench, options: Mapping[str, Any]) -> Iterator[Row]:
    work = _prepared(bench, options)
    cases: dict[str, Callable[[], float]] = {
        _PLAIN: lambda: _plain(work),
        "pathex, dense": lambda: _loop(work, None),
        _MASKED: lambda: _loop(work, _mask(work)),
    }
    if (tickets := options["tickets"]) > 0:
        cases |= {
            f"{tickets} together": lambda: _tickets(work, "together"),
            f"{tickets} processes": lambda: _tickets(work, "local"),
        }
    seconds: dict[str, list[float]] = defaultdict(list)
    shares: list[float] = []
    failed: dict[str, str] = {}
    for repeat in range(bench.repeats):
        # In turn, so that whatever else the machine does meets all cases alike.
        for name, case in cases.items():
            if name in failed:
                continue
            bench.say(f"repeat {repeat + 1} of {bench.repeats}: {name}")
            try:
                seconds[name].append(case())
                if name == _MASKED:
                    shares += _shares_of_mask(work)
            except (PathexError, RuntimeError) as error:
                failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    for name in cases:
        row = _row(work, name, seconds, failed.get(name))
        if name == _MASKED and shares:
            row |= dict(zip(("mask_low", "mask_share", "mask_high"), quartiles(shares), strict=True))
        yield row


def _row(work: _Work, name: str, seconds: Mapping[str, list[float]], error: str | None) -> Row:
    options = work.options
    row: Row = {
        "case": name,
        "model": options["model"],
        "device": str(work.bench.device),
        "threads": work.bench.threads,
        "images": options["images"],
        "batch_size": options["batch_size"],
        "precision": options["precision"],
        "tickets": options["tickets"] if name[0].isdigit() else 1,
    }
    if error is not None:
        return {**row, ERROR: error}
    low, middle, high = quartiles(seconds[name])
    ratios = [own / plain for own, plain in zip(seconds[name], seconds[_PLAIN], strict=False)]
    return {
        **row,
        "epoch_seconds": middle,
        "epoch_low": low,
        "epoch_high": high,
        "images_per_second": options["images"] / middle,
        "ratio": quartiles(ratios)[1] if ratios else None,
    }


def _prepared(bench: Bench, options: Mapping[str, Any]) -> _Work:
    source = torch.Generator().manual_seed(bench.seed)
    count = options["images"]
    pixels = torch.randint(256, (count, 3, _SIDE, _SIDE), dtype=torch.uint8, generator=source)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(bench.seed)
        network = models.create(options["model"], _CLASSES, 3)
    return _Work(bench, options, pixels, torch.arange(count) % _CLASSES, network)


def _mask(work: _Work) -> Mask:
    source = torch.Generator().manual_seed(work.bench.seed)
    density = 1 - work.options["sparsity"]
    weights = prunable_weights(work.network)
    return Mask({name: torch.rand(each.shape, generator=source) < density for name, each in weights.items()})


# -- one ticket --------------------------------------------------------------------------------------------------------


def _plain(work: _Work) -> float:
    """The shortest loop there is: normalised images on the device in batches, no order, no augmentation, no metric.

    On a GPU a whole step is one CUDA graph.

    Returns:
        Seconds of an epoch.
    """
    device, size = work.bench.device, work.options["batch_size"]
    model = copy.deepcopy(work.network).to(device).train()
    layout = memory_format(model)
    model.to(memory_format=layout)
    cuda = device.type == "cuda"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=cuda or None)
    images = (work.pixels.to(device).float() / 128 - 1).contiguous(memory_format=layout)
    batches = list(zip(images.split(size), work.labels.to(device).split(size), strict=True))
    inputs, targets = batches[0][0].clone(memory_format=layout), batches[0][1].clone()
    mixed = work.options["precision"] == "bf16-mixed"

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            outputs = model(inputs)
        nn.functional.cross_entropy(outputs.float(), targets).backward()
        optimizer.step()

    for _ in range(3 if cuda else 1):
        step()
    again: Callable[[], object] = cuda_graph(step, device) if cuda else step
    began = now(device)
    for _ in range(work.options["epochs"]):
        for batch, labels in batches:
            inputs.copy_(batch)
            targets.copy_(labels)
            again()
    return (now(device) - began) / work.options["epochs"]


def _loop(work: _Work, mask: Mask | None) -> float:
    """The loop of ``pathex run``, with random order, augmentation, metric and checkpoints.

    Returns:
        Seconds of an epoch, after the first.
    """
    from torchmetrics.classification import MulticlassAccuracy

    machine = fabric(work.machine, work.options["precision"])
    split = ArraySplit(work.pixels, work.labels)
    half = torch.full((3,), 0.5)
    names = tuple(map(str, range(_CLASSES)))
    data = ImageData("random", split, split, _CLASSES, names, half, half, "crop-flip")
    feed = Feed(data, split, device=machine.device, batch_size=work.options["batch_size"], augment="crop-flip")
    ends: list[float] = []

    def hear(kind: str, _: dict[str, Any]) -> None:
        if kind == "epoch":
            ends.append(now(machine.device))

    model = copy.deepcopy(work.network).to(machine.device)
    with tempfile.TemporaryDirectory(prefix="pathex-bench-") as folder:
        fit(
            model,
            feed,
            TrainOptions(epochs=1 + work.options["epochs"], batch_size=work.options["batch_size"]),
            fabric=machine,
            loss=nn.CrossEntropyLoss(),
            metric=MulticlassAccuracy(_CLASSES, average="micro", validate_args=False),
            folder=Path(folder),
            prepare=None if mask is None else lambda network, optimizer: attach(network, mask, optimizer) and None,
            on_event=hear,
        )
    return (ends[-1] - ends[0]) / work.options["epochs"]


def _shares_of_mask(work: _Work) -> list[float]:
    """What a mask adds to a step without a graph, as shares of the step: groups of steps with and without, in turn.

    Returns:
        A share for each pair of groups.
    """
    device, size = work.bench.device, work.options["batch_size"]
    pixels, labels = work.pixels[:size].to(device), work.labels[:size].to(device)

    def stepper(mask: Mask | None) -> Callable[[], None]:
        model = copy.deepcopy(work.network).to(device).train()
        layout = memory_format(model)
        model.to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        if mask is not None:
            attach(model, mask, optimizer)
        images = (pixels.float() / 128 - 1).contiguous(memory_format=layout)

        def step() -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

        return step

    both = [stepper(None), stepper(_mask(work))]
    for step in both:
        step()
    shares = []
    for pair in range(_PAIRS):
        seconds = [0.0, 0.0]
        for which in (0, 1) if pair % 2 else (1, 0):
            began = now(device)
            for _ in range(_GROUP):
                both[which]()
            seconds[which] = now(device) - began
        shares.append(seconds[1] / seconds[0] - 1)
    return shares


# -- many tickets ------------------------------------------------------------------------------------------------------


def _tickets(work: _Work, executor: str) -> float:
    """Tickets of one architecture that train at the same time, as in ``pathex sweep``.

    Returns:
        Seconds of an epoch of one ticket, while all are training: one over the sum of their rates.

    Raises:
        RuntimeError: If a run fails, or there was no time at which all were training.
    """
    count = work.options["tickets"]
    with tempfile.TemporaryDirectory(prefix="pathex-bench-") as folder:
        config = _sweep(work, executor, Path(folder))
        planned = plan(config)
        ends: dict[str, list[float]] = defaultdict(list)
        left = set(planned.runs)
        with create(config, planned.runs.values()) as made:
            for name, run in planned.runs.items():
                made.submit(Job(name, run, made.threads))
            while left:
                for message in made.listen(0.05):
                    if message.kind == "epoch":
                        ends[message.name].append(time.perf_counter())
                    elif message.kind == ENDED:
                        left.discard(message.name)
                        if message.payload["status"] != "done":
                            raise RuntimeError(message.payload["error"])
    rate = side_by_side(list(ends.values()))
    if rate is None:
        raise RuntimeError(f"the {count} runs were never all training; a larger 'images' helps")
    return 1 / rate


def side_by_side(ends: list[list[float]]) -> float | None:
    """Epochs per second of several trainings, while all of them are training.

    Args:
        ends: The moments at which each training ended an epoch.

    Returns:
        The sum of their rates between the first end of an epoch of the last to begin and the last one of the first to
        end; None if one has no whole epoch there.
    """
    begin, end = max(moments[0] for moments in ends), min(moments[-1] for moments in ends)
    rate = 0.0
    for moments in ends:
        inside = [moment for moment in moments if begin <= moment <= end]
        if len(inside) < 2:
            return None
        rate += (len(inside) - 1) / (inside[-1] - inside[0])
    return rate


def _sweep(work: _Work, executor: str, folder: Path) -> SweepConfig:
    """A sweep over seeds, whose data are the suite's images in a file."""
    images, labels = work.pixels.permute(0, 2, 3, 1).numpy(), work.labels.numpy()[:, None]
    few = slice(0, 2 * _CLASSES)
    arrays = {"train_images": images, "train_labels": labels}
    for part in ("val", "test"):
        arrays |= {f"{part}_images": images[few], f"{part}_labels": labels[few]}
    np.savez(folder / "random.npz", allow_pickle=False, **arrays)
    settings = {
        "method": "random",
        "sparsity": work.options["sparsity"],
        "model": work.options["model"],
        "data": f"npz:{folder / 'random.npz'}",
        "augment": "crop-flip",
        "images_per_class": 1,
        "epochs": _EPOCHS + work.options["epochs"],
        "batch_size": work.options["batch_size"],
        "precision": work.options["precision"],
        "device": work.machine,
    }
    tickets = work.options["tickets"]
    return SweepConfig(
        settings=settings,
        grid={"seed": list(range(tickets))},
        executor=executor,
        concurrent=tickets,
        threads=max(1, work.bench.threads // tickets) if executor == "local" else work.bench.threads,
        out=str(folder / "runs"),
    )


# -- what is told ------------------------------------------------------------------------------------------------------


def _plot(frame: pd.DataFrame, path: Path) -> None:
    """Images per second of each case, all its tickets together, with quartiles."""
    rows = frame.reindex(columns=[*frame.columns, *({"epoch_seconds"} - {*frame})]).dropna(subset=["epoch_seconds"])
    with styled():
        figure = Figure(figsize=(7, 1.5 + 0.4 * len(rows)))
        axes = figure.subplots()
        values = rows["images_per_second"].to_numpy(float)
        ends = rows["images"].to_numpy(float)[:, None] / rows[["epoch_high", "epoch_low"]].to_numpy(float)
        colours = [_COLOURS.get(case, "#0072B2") for case in rows["case"]]
        spread = np.abs(ends.T - values)
        axes.barh(rows["case"], values, color=colours, xerr=spread, error_kw={"ecolor": INK, "elinewidth": 1})
        for place, (value, end, ratio) in enumerate(zip(values, ends[:, 1], rows["ratio"], strict=True)):
            note = f"{value:,.0f} ({ratio:.2f} of the time)"
            axes.annotate(note, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_xlim(0, 1.6 * ends.max(initial=1e-9))
        axes.set_title("images per second, all tickets together")
        axes.invert_yaxis()
        axes.grid(visible=False)
        save(figure, path)


def _summary(frame: pd.DataFrame) -> list[str]:
    """The loop against the shortest one, and what the mask adds."""
    if "epoch_seconds" not in frame:
        return []
    measured = frame.dropna(subset=["epoch_seconds"])
    ratios = dict(zip(measured["case"], measured["ratio"], strict=True))
    lines = [f"{case}: {ratio:.3f} of the time of the {_PLAIN}" for case, ratio in ratios.items() if case != _PLAIN]
    if "mask_share" in measured:
        low, share, high = (100 * measured[name].max() for name in ("mask_low", "mask_share", "mask_high"))
        lines.append(f"the mask costs {share:.1f} in 100 of a step (quartiles {low:.1f} to {high:.1f})")
    return lines


SUITE = Suite(
    name="training",
    title="training: the loop against the shortest one by hand, the cost of a mask, many tickets at once",
    defaults=MappingProxyType(
        {
            "model": "resnet20",
            "images": 512,
            "batch_size": 128,
            "epochs": 2,
            "sparsity": 0.98,
            "tickets": 2,
            "precision": "32-true",
        }
    ),
    rows=_rows,
    plot=_plot,
    help=MappingProxyType(
        {
            "model": "name of a model for images of 32 pixels",
            "images": "random images in an epoch",
            "batch_size": "images in a step",
            "epochs": "epochs that are measured, after a first one",
            "sparsity": "fraction removed by the random mask",
            "tickets": "tickets that train at the same time; 0 leaves these cases out",
            "precision": "32-true or bf16-mixed",
        }
    ),
    summary=_summary,
)
