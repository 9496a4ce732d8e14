"""A pre-trained EfficientNet-Lite0, pruned and fine-tuned for a few epochs on ten classes; methods paired by seed.

    python -m benchmarks.lite0 --weights tf_efficientnet_lite0.safetensors --data imagenet10 --jobs 16

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

Each run is one process with one thread and gives a row; a summary has means over seeds and the differences to px at the
same sparsity, paired by seed, with standard errors.

| column | meaning |
|---|---|
| `method`, `sparsity`, `seed` | the run; `dense` has sparsity 0 |
| `accuracy` | share of the validation images classified right after the last epoch |
| `train_loss` | mean loss over the last epoch |
| `dead_layers` | layers of which no weight lies on a path from input to output |
| `kept`, `total` | kept weights and all weights of the convolutions |
| `prune_seconds`, `train_seconds` | wall-clock times of one thread |
"""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pathex
from benchmarks.measure import Row, Table, arguments, carry_out, command, paired
from pathex import scores
from pathex.data import ImageData
from pathex.errors import PathexWarning
from pathex.train import epoch_generator

__all__ = [
    "DENSE",
    "Case",
    "Protocol",
    "accuracy",
    "batches",
    "cases",
    "centre",
    "load_images",
    "main",
    "network",
    "run_case",
    "summary",
    "train",
]

DENSE = "dense"


@dataclass(frozen=True)
class Protocol:
    """What all runs share; ``size`` is the side of what the network sees, ``margin`` the room for random windows."""

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
    """Every run and the dense ones, those that take longest first, so that no process is left with one at the end."""
    pruned = [Case(method, sparsity, seed) for method in methods for sparsity in sparsities for seed in seeds]
    pruned.sort(key=lambda case: -scores.find(case.method).rounds)
    return pruned + [Case(DENSE, 0.0, seed) for seed in seeds]


@cache
def load_images(folder: str, size: int) -> ImageData:
    """The images, decoded once in each process and normalised as the pre-trained network expects."""
    data = pathex.data.load(f"imagefolder:{folder}", image_size=size)
    return replace(data, mean=torch.full((3,), 0.5), std=torch.full((3,), 0.5))


def network(protocol: Protocol, num_classes: int, seed: int) -> tuple[nn.Module, nn.Linear]:
    """The pre-trained network with a new classifier drawn from the seed, and that classifier."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", PathexWarning)  # that the classifier is new is what is wanted
        torch.default_generator.manual_seed(seed)
        model = pathex.models.create(protocol.model, num_classes, weights=protocol.weights)
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.1
    return model.to(memory_format=torch.channels_last), head


def run_case(case: Case, protocol: Protocol) -> Row:
    """Prune, fine-tune, test."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", PathexWarning)
    data = load_images(protocol.data, protocol.size + protocol.margin)
    model, head = network(protocol, data.num_classes, case.seed)
    chosen = pathex.data.pruning_set(data, protocol.images_per_class, case.seed)
    began = time.perf_counter()
    dense = case.method == DENSE
    method = "random" if dense else case.method
    result = pathex.prune(
        model,
        method,
        sparsity=case.sparsity,
        data=(centre(chosen.images, protocol), chosen.labels),
        rounds=min(scores.find(method).rounds, protocol.px_rounds),
        ignore=[head],
        seed=case.seed,
        progress=False,
    )
    pruned = time.perf_counter()
    loss = train(model, result.mask, case.seed, protocol, data)
    return {
        **asdict(case),
        "accuracy": accuracy(model, protocol, data),
        "train_loss": round(loss, 5),
        "dead_layers": len(result.report.dead_layers),
        "kept": result.mask.kept,
        "total": result.mask.total,
        "prune_seconds": 0.0 if dense else round(pruned - began, 2),
        "train_seconds": round(time.perf_counter() - pruned, 2),
    }


def train(model: nn.Module, mask: pathex.Mask | None, seed: int, protocol: Protocol, data: ImageData) -> float:
    """Train in place; the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=protocol.lr, momentum=0.9, weight_decay=protocol.weight_decay, foreach=True
    )
    handle = None if mask is None else pathex.attach(model, mask, optimizer)
    steps = protocol.epochs * math.ceil(len(data.train) / protocol.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    mean = math.nan
    for epoch in range(1, protocol.epochs + 1):
        total = 0.0
        for images, labels in batches(data, protocol, seed, epoch):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(labels)
        mean = total / len(data.train)
    if handle is not None:
        handle.remove()
    return mean


def batches(data: ImageData, protocol: Protocol, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch."""
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


def centre(images: Tensor, protocol: Protocol) -> Tensor:
    """What tests and scores see of images."""
    start = protocol.margin // 2
    return images[..., start : start + protocol.size, start : start + protocol.size]


@torch.no_grad()
def accuracy(model: nn.Module, protocol: Protocol, data: ImageData) -> float:
    """Share of the validation images classified right."""
    model.eval()
    right = 0
    for rows in torch.arange(len(data.test)).split(protocol.batch_size):
        images = data.normalise(centre(data.test.images(rows), protocol))
        outputs = model(images.contiguous(memory_format=torch.channels_last))
        right += int((outputs.argmax(1) == data.test.labels[rows]).sum())
    return right / len(data.test)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and differences to `px` paired by seed; the dense network is compared at each sparsity."""
    sparsities = sorted(rows.loc[rows["method"] != DENSE, "sparsity"].unique())
    dense = rows[rows["method"] == DENSE]
    frame = pd.concat([rows[rows["method"] != DENSE], *(dense.assign(sparsity=sparsity) for sparsity in sparsities)])
    return paired(frame, "sparsity", ["dead_layers"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything and write rows and summary; 1 if a run failed."""
    parser = arguments(__doc__, "lite0")
    parser.add_argument("--weights", required=True, help="file of the pre-trained weights")
    parser.add_argument("--data", required=True, help="folder with train/CLASS/* and val/CLASS/*")
    parser.add_argument("--model", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--methods", nargs="*", default=["px", "magnitude", "snip", "random"])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.7, 0.9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = ("size", "margin", "epochs", "batch_size", "lr", "weight_decay", "images_per_class", "px_rounds")
    for name in options:
        default = getattr(Protocol, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    given = parser.parse_args(argv)
    chosen = {name: getattr(given, name) for name in options}
    protocol = Protocol(given.model, given.weights, given.data, **chosen)
    todo = cases(given.methods, given.sparsity, given.seeds)
    names = {"weights": Path(protocol.weights).name, "data": Path(protocol.data).name}
    table = Table(given.out, {**asdict(protocol), **names})
    return carry_out(table, partial(run_case, protocol=protocol), todo, given.jobs, summary)


if __name__ == "__main__":
    raise SystemExit(command(main))
