"""Milliseconds of tickets on a CPU: dense engines, and `pathex.compile` at several sparsities.

    python -m benchmarks.latency
    python -m benchmarks.latency --models resnet20 --batches 1 --tickets tickets

Networks have random weights; BatchNorm statistics are moved by three batches of normal numbers. Tickets are of `px`,
ten images, ten rounds; ``--tickets`` keeps them for another call. All engines of a case take turns
(`pathex.experiments.measure.latency`).

| column | meaning |
|---|---|
| `model`, `batch_size`, `threads` | the case |
| `sparsity`, `count` | removed share of what is counted: weights, or multiply-adds |
| `multiply_adds` | share of the dense multiply-adds that is left |
| `engine` | see `pathex.experiments.measure.ENGINES` |
| `milliseconds`, `low`, `high` | median and quartiles of seven turns |
| `times` | the fastest dense engine of the case over this one |
| `difference` | of the outputs from torch's, relative to the largest |
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pathex
from benchmarks.measure import Table, arguments, command
from pathex.analysis import count as counts_of
from pathex.errors import PathexWarning
from pathex.experiments.measure import DENSE, fastest_dense, latency

__all__ = ["CASES", "MODELS", "main", "network", "ticket"]

MODELS = {
    "resnet20": 32,
    "vgg16_bn": 32,
    "torchvision:resnet18": 224,
    "torchvision:resnet50": 224,
    "torchvision:mobilenet_v2": 224,
    "timm:efficientnet_lite0": 224,
    "timm:vit_tiny_patch16_224": 224,
    "smp:DeepLabV3Plus": 256,
}
_OPTIONS = {"smp:DeepLabV3Plus": {"encoder_name": "resnet50"}}
CASES = ((0.9, "weights"), (0.95, "weights"), (0.982, "weights"), (0.95, "multiply_adds"))


def network(name: str, seed: int) -> tuple[nn.Module, int]:
    """A network at its own initialization whose BatchNorm has seen three batches, and the side of its images."""
    size = MODELS.get(name, 224 if ":" in name else 32)
    torch.manual_seed(seed)
    model = pathex.models.create(
        name, num_classes=10 if size == 32 else 1000 if size == 224 else 21, **_OPTIONS.get(name, {})
    )
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, size, size, generator=generator))
    return model.eval(), size


def ticket(
    model: nn.Module, name: str, size: int, sparsity: float, count: Any, seed: int, folder: Path | None
) -> pathex.Mask:
    """The mask of `px`, from a folder if it is there."""
    path = None if folder is None else folder / f"{name.replace(':', '-')}-{sparsity}-{count}-{seed}.safetensors"
    if path is not None and path.exists():
        return pathex.Mask.load(path)
    images = torch.randn(10, 3, size, size, generator=torch.Generator().manual_seed(seed))
    how: dict[str, Any] = {"rounds": 10, "seed": seed, "progress": False}
    mask = pathex.prune(model, "px", data=images, sparsity=sparsity, count=count, **how).mask
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
    return mask


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the rows."""
    parser = arguments(__doc__, "latency")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--engines", nargs="+", default=[*DENSE, "compact", "sparse"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tickets", type=Path, help="folder that keeps masks")
    parser.set_defaults(threads=1)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore", PathexWarning)
    table = Table(given.out, {"seed": given.seed, "tickets": "px, 10 images, 10 rounds"}, threads=given.threads)
    for name in given.models:
        for sparsity, count in CASES:
            model, size = network(name, given.seed)
            mask = ticket(model, name, size, sparsity, count, given.seed, given.tickets)
            counts = counts_of(model, (3, size, size))
            about = {"model": name, "sparsity": sparsity, "count": count}
            about["multiply_adds"] = round(counts.multiply_adds(mask) / counts.multiply_adds(), 4)
            images = torch.randn(max(given.batches), 3, size, size, generator=torch.Generator().manual_seed(1))
            how: dict[str, Any] = {"batch_sizes": given.batches, "engines": given.engines, "rounds": given.rounds}
            rows = latency(pathex.make_permanent(model, mask), images, threads=(given.threads,), **how)
            for row in rows:
                if "milliseconds" in row:
                    numbers = {key: round(row[key], 4) for key in ("milliseconds", "low", "high")}
                    row |= {**numbers, "times": round(fastest_dense(rows, row) / row["milliseconds"], 2)}
                table.add({**about, **row})
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))
