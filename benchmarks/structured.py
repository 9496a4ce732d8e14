"""Smaller dense networks of a pre-trained one: pathex's channels beside torch-pruning, at equal multiply-adds.

    python -m benchmarks.structured --weights tf_efficientnet_lite0.safetensors --data imagenet10 --jobs 2

The network, its images and the fine-tuning are those of `benchmarks.lite0`. pathex removes channels by the scores of a
method (``structure="channels"``, ``count="multiply_adds"``; 40 rounds, one of magnitude), and compacts. torch-pruning
1.6, which has to be installed, goes in steps of half a per cent of the channels to the same number of multiply-adds: by
the magnitude of groups, the same share of each layer, or by one threshold for their Taylor expansion on the same
images. Of one seed all get the same classifier, images, windows and mirrorings.

| column | meaning |
|---|---|
| `method`, `removed`, `seed` | the run; the removed share of multiply-adds |
| `multiply_adds`, `parameters` | of the smaller network |
| `before` | accuracy before it is trained |
| `accuracy` | share of the validation images classified right after the last epoch |
| `prune_seconds`, `train_seconds` | wall-clock times of one thread |
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pathex
from benchmarks.lite0 import Protocol, accuracy, centre, load_images, network, train
from benchmarks.measure import Row, Table, arguments, carry_out, command, paired
from pathex.analysis import count
from pathex.errors import PathexWarning

__all__ = ["Case", "main", "run_case", "summary"]

DENSE = "dense"
OURS = ("px", "iterative-snip", "magnitude")
PEERS = ("torch-pruning-magnitude", "torch-pruning-taylor-global")


@dataclass(frozen=True)
class Case:
    """One run: a method (or `DENSE`), the share of multiply-adds removed, and the seed."""

    method: str
    removed: float
    seed: int


def ours(model: nn.Module, head: nn.Module, case: Case, images: Tensor, labels: Tensor, rounds: int) -> nn.Module:
    """What is left by pathex."""
    mask = pathex.prune(
        model,
        case.method,
        sparsity=case.removed,
        data=(images, labels),
        rounds=rounds,
        ignore=[head],
        structure="channels",
        count="multiply_adds",
        seed=case.seed,
        progress=False,
    ).mask
    return pathex.compact(model, mask, images[:2])


def operations(model: nn.Module, images: Tensor) -> int:
    """Twice the multiply-adds, counted as it runs: a network that changes in each step is not worth a trace."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return int(counter.get_total_flops())


def theirs(model: nn.Module, head: nn.Module, case: Case, images: Tensor, labels: Tensor) -> nn.Module:
    """What is left by torch-pruning."""
    import torch_pruning as tp  # type: ignore[import-not-found]

    taylor = "taylor" in case.method
    importance = tp.importance.GroupTaylorImportance() if taylor else tp.importance.GroupMagnitudeImportance(p=2)
    how = {"global_pruning": case.method.endswith("global"), "pruning_ratio": 1.0, "max_pruning_ratio": 0.95}
    pruner = tp.pruner.BasePruner(model, images[:2], importance, iterative_steps=200, ignored_layers=[head], **how)
    limit = (1 - case.removed) * operations(model, images[:1])
    while operations(model, images[:1]) > limit:
        if taylor:
            model.zero_grad()
            F.cross_entropy(model(images), labels).backward()
        pruner.step()
    return model


def run_case(case: Case, protocol: Protocol) -> Row:
    """Prune, compact, fine-tune, test."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", PathexWarning)
    data = load_images(protocol.data, protocol.size + protocol.margin)
    model, head = network(protocol, data.num_classes, case.seed)
    model.eval()
    chosen = pathex.data.pruning_set(data, protocol.images_per_class, case.seed)
    images, began = centre(chosen.images, protocol), time.perf_counter()
    if case.method in PEERS:
        model = theirs(model, head, case, images, chosen.labels)
    elif case.method != DENSE:
        model = ours(model, head, case, images, chosen.labels, 1 if case.method == "magnitude" else protocol.px_rounds)
    pruned, counts = time.perf_counter(), count(model, tuple(images.shape[1:]))
    before = accuracy(model, protocol, data)
    train(model, None, case.seed, protocol, data)
    return {
        **asdict(case),
        "multiply_adds": counts.multiply_adds(),
        "parameters": counts.parameters(),
        "before": before,
        "accuracy": accuracy(model, protocol, data),
        "prune_seconds": round(pruned - began, 2),
        "train_seconds": round(time.perf_counter() - pruned, 2),
    }


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with standard errors, and differences to `px` paired by seed."""
    return paired(rows, "removed", ["before", "multiply_adds", "parameters"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything and write rows and summary; 1 if a run failed."""
    parser = arguments(__doc__, "structured")
    parser.add_argument("--weights", required=True, help="file of the pre-trained weights")
    parser.add_argument("--data", required=True, help="folder with train/CLASS/* and val/CLASS/*")
    parser.add_argument("--methods", nargs="*", default=[*OURS, *PEERS])
    parser.add_argument("--removed", type=float, nargs="+", default=[0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=Protocol.epochs)
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    given = parser.parse_args(argv)
    protocol = Protocol("timm:tf_efficientnet_lite0", given.weights, given.data, epochs=given.epochs, px_rounds=40)
    todo = [Case(method, removed, s) for s in given.seeds for removed in given.removed for method in given.methods]
    todo += [Case(DENSE, 0.0, seed) for seed in given.seeds]
    names = {"weights": Path(protocol.weights).name, "data": Path(protocol.data).name}
    table = Table(given.out, {**asdict(protocol), **names})
    return carry_out(table, partial(run_case, protocol=protocol), todo, given.jobs, summary)


if __name__ == "__main__":
    raise SystemExit(command(main))
