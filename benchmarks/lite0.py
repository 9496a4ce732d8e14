"""A pre-trained EfficientNet-Lite0, pruned and fine-tuned for a few epochs on ten classes; methods paired by seed.

    python benchmarks/lite0.py --weights tf_efficientnet_lite0.safetensors --data imagenet10 --jobs 16

The data folder holds ``train/CLASS/*`` and ``val/CLASS/*`` (Imagenette has such a layout), the weights file the
ImageNet weights of timm's ``tf_efficientnet_lite0``. Nothing is downloaded.

Protocol. The classifier is replaced by a new one, weights from N(0, 0.01^2) by the seed, bias 0. It is left dense for
every method: its weights mean nothing yet, and their scale alone would decide how many of them a method keeps. All
convolutions are pruned, by one threshold, on ten images of each class; `px` takes 10 rounds here (published: 100), the
others their published number. Then the whole network is trained with SGD, momentum 0.9, no weight decay on removed
weights as they stay zero, and a cosine from the first learning rate to zero over all steps. BatchNorm is not frozen: it
normalises by the batch and its stored statistics follow (momentum 0.1), as pruning has changed what reaches it. Images
are brought to 144 pixels; training cuts a random window of 128 and mirrors half of them, tests cut the centre. Of one
seed every method gets the same classifier, pruning set, order of images, windows and mirrorings.
The learning rate lies between what suits the dense network (0.01 and below) and what suits a sparsity of 0.9 (0.05); it
was chosen on another seed than those of the runs.

Written are one row a run (csv, as runs end), a summary with the paired differences to px (csv), and settings and
environment (json). Each run is one process with one thread.

| column | meaning |
|---|---|
| `method`, `sparsity`, `seed` | the run; `dense` has sparsity 0 |
| `accuracy` | share of the validation images classified right after the last epoch |
| `train_loss` | mean loss over the last epoch |
| `dead_layers` | layers of which no weight lies on a path from input to output |
| `kept`, `total` | kept weights and all weights of the convolutions |
| `prune_seconds`, `train_seconds` | wall-clock times of one thread |
"""

import argparse
import functools
import json
import math
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pathex
from pathex import scores
from pathex.data import ImageData
from pathex.errors import InvalidInput, PathexError, PathexWarning
from pathex.pruning import PruneResult
from pathex.report._statistics import estimate
from pathex.runs.environment import environment
from pathex.train import replacing
from pathex.train.seeding import epoch_generator

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DENSE", "Case", "Protocol", "cases", "main", "network", "run_case", "summary"]

DENSE = "dense"
_REFERENCE = "px"


@dataclass(frozen=True)
class Protocol:
    """What all runs share.

    Attributes:
        model: Name of the network.
        weights: File of its pre-trained weights.
        data: Folder of the images.
        size: Side of what the network sees, in pixels.
        margin: Pixels by which decoded images are larger, room for random windows.
        epochs: Passes over the training images.
        batch_size: Images in a step.
        lr: Learning rate of the first step.
        weight_decay: L2 penalty, on every parameter.
        images_per_class: Images of each class that scores see.
        px_rounds: Rounds of the methods that are published with more; the others take their published number.
    """

    model: str
    weights: str
    data: str
    size: int = 128
    margin: int = 16
    epochs: int = 8
    batch_size: int = 32
    lr: float = 0.02
    weight_decay: float = 1e-4
    images_per_class: int = 10
    px_rounds: int = 10


@dataclass(frozen=True)
class Case:
    """One run: a method (or `DENSE`), the fraction removed, and the seed."""

    method: str
    sparsity: float
    seed: int


def cases(methods: Sequence[str], sparsities: Sequence[float], seeds: Sequence[int]) -> list[Case]:
    """Every run, those that take longest first, so that no process is left with one at the end.

    Args:
        methods: Methods; dense runs are added.
        sparsities: Fractions removed.
        seeds: Seeds.

    Returns:
        The runs.
    """
    pruned = [Case(method, sparsity, seed) for method in methods for sparsity in sparsities for seed in seeds]
    pruned.sort(key=lambda case: -scores.find(case.method).card.rounds)
    return pruned + [Case(DENSE, 0.0, seed) for seed in seeds]


# -- one run -----------------------------------------------------------------------------------------------------------


@functools.cache
def load_images(folder: str, size: int) -> ImageData:
    """The images, decoded once in each process and normalised as the pre-trained network expects.

    Args:
        folder: The folder.
        size: Side of the decoded images, in pixels.

    Returns:
        The data set.
    """
    data = pathex.data.load(f"imagefolder:{folder}", image_size=size)
    return replace(data, mean=torch.full((3,), 0.5), std=torch.full((3,), 0.5))


def network(protocol: Protocol, num_classes: int, seed: int) -> tuple[nn.Module, nn.Linear]:
    """The pre-trained network with a new classifier.

    Args:
        protocol: Network and weights.
        num_classes: Outputs.
        seed: Seed of the classifier.

    Returns:
        The network and its classifier.

    Raises:
        InvalidInput: If the network has no linear layer.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", PathexWarning)  # that the classifier is new is what is wanted
        torch.default_generator.manual_seed(seed)
        model = pathex.models.create(protocol.model, num_classes, weights=protocol.weights)
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise InvalidInput(f"model {protocol.model!r} has no linear layer that could be its classifier")
        nn.init.normal_(linear[-1].weight, std=0.01)
        if linear[-1].bias is not None:
            nn.init.zeros_(linear[-1].bias)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.1
    return model.to(memory_format=torch.channels_last), linear[-1]


def run_case(case: Case, protocol: Protocol) -> dict[str, Any]:
    """Prune, fine-tune, test.

    Args:
        case: The run.
        protocol: What all runs share.

    Returns:
        The row.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", PathexWarning)
    data = load_images(protocol.data, protocol.size + protocol.margin)
    model, head = network(protocol, data.num_classes, case.seed)
    prunable = pathex.prune(model, "random", sparsity=0.0, data=_first(data), ignore=[head], progress=False).mask
    mask, dead, began = prunable, 0, time.perf_counter()
    if case.method != DENSE:
        result = _pruned(model, head, case, protocol, data)
        mask, dead = result.mask, len(result.report.dead_layers)
    pruned = time.perf_counter()
    loss = _train(model, mask, case.seed, protocol, data)
    trained = time.perf_counter()
    return {
        **asdict(case),
        "accuracy": _accuracy(model, protocol, data),
        "train_loss": round(loss, 5),
        "dead_layers": dead,
        "kept": mask.kept,
        "total": mask.total,
        "prune_seconds": round(pruned - began, 2),
        "train_seconds": round(trained - pruned, 2),
    }


def _first(data: ImageData) -> Tensor:
    return data.normalise(data.train.images(torch.arange(1)))


def _pruned(model: nn.Module, head: nn.Module, case: Case, protocol: Protocol, data: ImageData) -> PruneResult:
    chosen = pathex.data.pruning_set(data, protocol.images_per_class, case.seed)
    published = scores.find(case.method).card.rounds
    return pathex.prune(
        model,
        case.method,
        sparsity=case.sparsity,
        data=(_centre(chosen.images, protocol), chosen.labels),
        rounds=min(published, protocol.px_rounds),
        ignore=[head],
        seed=case.seed,
        progress=False,
    )


def _train(model: nn.Module, mask: pathex.Mask, seed: int, protocol: Protocol, data: ImageData) -> float:
    """Train in place; the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=protocol.lr, momentum=0.9, weight_decay=protocol.weight_decay, foreach=True
    )
    handle = pathex.attach(model, mask, optimizer)
    steps = protocol.epochs * math.ceil(len(data.train) / protocol.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    mean = math.nan
    for epoch in range(1, protocol.epochs + 1):
        total = 0.0
        for images, labels in _batches(data, protocol, seed, epoch):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(labels)
        mean = total / len(data.train)
    handle.remove()
    return mean


def _batches(data: ImageData, protocol: Protocol, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = epoch_generator(seed, epoch)
    size, margin = protocol.size, protocol.margin
    for rows in torch.randperm(len(data.train), generator=generator).split(protocol.batch_size):
        top, left = torch.randint(0, margin + 1, (2, len(rows)), generator=generator).tolist()
        mirrored = (torch.rand(len(rows), generator=generator) < 0.5).tolist()
        windows = [
            image[:, y : y + size, x : x + size].flip(2) if flip else image[:, y : y + size, x : x + size]
            for image, y, x, flip in zip(data.train.images(rows), top, left, mirrored, strict=True)
        ]
        images = data.normalise(torch.stack(windows))
        yield images.contiguous(memory_format=torch.channels_last), data.train.labels[rows]


def _centre(images: Tensor, protocol: Protocol) -> Tensor:
    start = protocol.margin // 2
    return images[..., start : start + protocol.size, start : start + protocol.size]


@torch.no_grad()
def _accuracy(model: nn.Module, protocol: Protocol, data: ImageData) -> float:
    model.eval()
    right = 0
    for rows in torch.arange(len(data.test)).split(protocol.batch_size):
        images = data.normalise(_centre(data.test.images(rows), protocol))
        outputs = model(images.contiguous(memory_format=torch.channels_last))
        right += int((outputs.argmax(1) == data.test.labels[rows]).sum())
    return right / len(data.test)


# -- all runs ----------------------------------------------------------------------------------------------------------


def summary(rows: Sequence[dict[str, Any]]) -> "pd.DataFrame":
    """Means over seeds, and differences to `px` paired by seed, with 95 % intervals of Student's t.

    Args:
        rows: Rows of the runs.

    Returns:
        One line for each sparsity and method: ``n``, ``accuracy`` and the ends of its interval, ``minus_px`` (mean
        over the seeds that both have of accuracy minus that of `px` at the same sparsity; dense: at each sparsity)
        and the ends of its interval, ``dead_layers`` (mean).
    """
    import pandas as pd

    accuracy = {(row["method"], row["sparsity"], row["seed"]): float(row["accuracy"]) for row in rows}
    dead = {(row["method"], row["sparsity"], row["seed"]): float(row["dead_layers"]) for row in rows}
    methods, seeds = dict.fromkeys(row["method"] for row in rows), sorted({row["seed"] for row in rows})
    lines: list[dict[str, Any]] = []
    for sparsity in sorted({row["sparsity"] for row in rows if row["method"] != DENSE}):
        for method in methods:
            own = 0.0 if method == DENSE else sparsity
            keys = [(method, own, seed) for seed in seeds if (method, own, seed) in accuracy]
            if not keys:
                continue
            pairs = [
                accuracy[key] - accuracy[_REFERENCE, sparsity, key[2]]
                for key in keys
                if method != _REFERENCE and (_REFERENCE, sparsity, key[2]) in accuracy
            ]
            lines.append(
                {
                    "sparsity": sparsity,
                    "method": method,
                    "n": len(keys),
                    **_interval("accuracy", [accuracy[key] for key in keys]),
                    **_interval("minus_px", pairs),
                    "dead_layers": sum(dead[key] for key in keys) / len(keys),
                }
            )
    return pd.DataFrame(lines).round(4)


def _interval(name: str, values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    found = estimate(values)
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def _write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pandas as pd

    frame = pd.DataFrame(rows).sort_values(["method", "sparsity", "seed"])
    with replacing(out) as temporary:
        frame.to_csv(temporary, index=False)


def _arguments(argv: Sequence[str] | None) -> tuple[Protocol, list[Case], int, Path]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", required=True, help="file of the pre-trained weights")
    parser.add_argument("--data", required=True, help="folder with train/CLASS/* and val/CLASS/*")
    parser.add_argument("--model", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--methods", nargs="*", default=["px", "magnitude", "snip", "random"])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.7, 0.9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name in ("size", "margin", "epochs", "batch_size", "images_per_class", "px_rounds"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Protocol, name))
    parser.add_argument("--lr", type=float, default=Protocol.lr)
    parser.add_argument("--weight-decay", type=float, default=Protocol.weight_decay)
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "rows" / "lite0.csv")
    given = vars(parser.parse_args(argv))
    jobs, out = given.pop("jobs"), given.pop("out")
    methods, sparsities, seeds = (given.pop(name) for name in ("methods", "sparsity", "seeds"))
    protocol = Protocol(**given)
    if min(jobs, protocol.size, protocol.epochs, protocol.batch_size, protocol.px_rounds) < 1 or protocol.margin < 0:
        parser.error("--jobs, --size, --epochs, --batch-size and --px-rounds must be at least 1, --margin at least 0")
    if not all(0 <= sparsity < 1 for sparsity in sparsities):
        parser.error("--sparsity must lie in [0, 1)")
    try:
        if not Path(protocol.data, "train").is_dir():
            raise InvalidInput(f"--data {protocol.data!r}: no folder 'train' there")
        network(protocol, 10, 0)
        return protocol, cases(methods, sparsities, seeds), jobs, out
    except PathexError as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything, print and write.

    Args:
        argv: Arguments; None is those of the command line.

    Returns:
        0, or 1 if a run failed.
    """
    protocol, todo, jobs, out = _arguments(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes to come
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_case, case, protocol): case for case in todo}
        for future in as_completed(futures):
            if (error := future.exception()) is not None:
                print(f"{futures[future]} failed:", file=sys.stderr)
                traceback.print_exception(error)
                continue
            rows.append(future.result())
            print(f"{time.perf_counter() - began:6.0f} s  {rows[-1]}", flush=True)
            _write(out, rows)
    if rows:
        frame = summary(rows)
        print(frame.to_string(index=False))
        with replacing(out.with_name(f"{out.stem}-summary.csv")) as temporary:
            frame.to_csv(temporary, index=False)
        settings = {**asdict(protocol), "weights": Path(protocol.weights).name, "data": Path(protocol.data).name}
        about = {
            "settings": settings,
            "jobs": jobs,
            "seconds": round(time.perf_counter() - began, 1),
            "environment": {**environment(torch.device("cpu")), "threads": 1},
        }
        with replacing(out.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return 0 if len(rows) == len(todo) else 1


if __name__ == "__main__":
    sys.exit(main())
