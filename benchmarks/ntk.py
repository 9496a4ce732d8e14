"""Seconds and memory of exact kernels, traces and spectra, as predicted and as measured.

    python -m benchmarks.ntk                    # two cases, half an hour on two cores; let nothing else run

ResNet-20 with 100 images of 32 pixels, and ResNet-50 with 64 images of 112 pixels and 10 outputs, at their own
initialization, with calibrated BatchNorm, dense and with a random mask. A row for each network, density and work:

| column | meaning |
|---|---|
| `work` | `kernel`, `trace`, `spectrum` (of that kernel), `ntk-diagonal` (a score with the same images) |
| `predicted_seconds`, `predicted_mib` | what `pathex.ntk.predict` said beforehand |
| `seconds`, `resident_mib` | as measured; the peak of resident memory above that before |
| `value` | alignment, effective rank, trace, sum of the scores |
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import pathex
from benchmarks.measure import MIB, Row, Table, arguments, command, peak_memory, problem
from pathex import ntk

CASES = {"resnet20": (100, 32, "4GiB"), "torchvision:resnet50": (64, 112, "12GiB")}


def _measured(work: Callable[[], Any], told: ntk.Cost | None = None) -> tuple[Any, Row]:
    row: Row = {}
    if told is not None:
        row = {"predicted_seconds": round(told.seconds, 2), "predicted_mib": round(told.bytes / MIB)}
    with peak_memory(row):
        started = time.perf_counter()
        found = work()
        row["seconds"] = round(time.perf_counter() - started, 2)
    return found, row


def _case(table: Table, about: Row, model: nn.Module, x: Tensor, y: Tensor, mask: pathex.Mask | None) -> None:
    how: dict[str, Any] = {"batch_norm": "calibrated", "memory": about["memory"]}
    told = ntk.predict(model, x, mask, **how)
    kernel, row = _measured(lambda: ntk.kernel(model, x, mask, **how), told)
    table.add({**about, "work": "kernel", **row, "value": ntk.alignment(kernel, y)})
    spectrum, row = _measured(lambda: ntk.spectrum(kernel))
    table.add({**about, "work": "spectrum", **row, "value": float(spectrum.effective_rank)})
    told = ntk.predict(model, x, mask, "exact", **how)
    trace, row = _measured(lambda: ntk.trace(model, x, mask, **how), told)
    table.add({**about, "work": "trace", **row, "value": float(trace)})
    score = {"data": x, "mask": mask, "projections": 0, "memory": about["memory"]}
    found, row = _measured(lambda: pathex.score(model, "ntk-diagonal", **score))
    table.add({**about, "work": "ntk-diagonal", **row, "value": float(sum(each.sum() for each in found.values()))})


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the rows."""
    parser = arguments(__doc__, "ntk")
    parser.add_argument("--networks", nargs="*", default=list(CASES), choices=CASES, metavar="NAME")
    parser.add_argument("--densities", nargs="*", type=float, default=[1.0, 0.018])
    parser.add_argument("--images", type=int, help="images in place of those of the case")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    table = Table(given.out, {"networks": given.networks, "seed": given.seed}, str(given.device), given.threads)
    for name in given.networks:
        images, size, memory = CASES[name]
        model, x, y = problem(name, given.images or images, 10, given.seed, given.device, size)
        for density in given.densities:
            mask = None if density == 1 else pathex.prune(model, "random", sparsity=1 - density, data=x[:1]).mask
            about = {"network": name, "images": len(x), "outputs": 10, "memory": memory, "density": density}
            _case(table, about, model, x, y, mask)
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))
