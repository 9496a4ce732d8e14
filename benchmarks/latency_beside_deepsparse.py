"""Milliseconds beside DeepSparse 1.8, the last engine that computed unstructured sparse networks on a CPU.

    python -m benchmarks.latency_beside_deepsparse --python deepsparse/bin/python
    python -m benchmarks.latency_beside_deepsparse --python deepsparse/bin/python --models resnet20 --tickets tickets

DeepSparse is no longer developed and needs an environment of its own: ``pip install deepsparse==1.8.0 'numpy<2'``. It
gets each network as an ONNX file with zeros in place of removed weights, for a fixed batch. Networks and tickets are
those of `benchmarks.latency`; both engines take turns of a tenth of a second, each alone on one core.

| column | meaning |
|---|---|
| `model`, `batch_size` | the case |
| `sparsity`, `count` | removed share of what is counted: weights, or multiply-adds |
| `milliseconds`, `deepsparse` | medians of seven turns |
| `times` | DeepSparse over `pathex.compile` |
"""

import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

_TURN = 0.1


def serve(path: str, batch: int, size: int) -> None:
    """In the other environment: for each line that comes in, the milliseconds of a call."""
    import numpy as np
    from deepsparse import compile_model

    engine = compile_model(path, batch_size=batch, num_cores=1)
    images = [np.random.default_rng(1).standard_normal((batch, 3, size, size), dtype=np.float32)]
    _milliseconds(lambda: engine.run(images))
    print("ready", flush=True)
    for _ in sys.stdin:
        print(_milliseconds(lambda: engine.run(images)), flush=True)


def _milliseconds(call: Callable[[], object]) -> float:
    """The median of the calls of one turn."""
    spent: list[float] = []
    end = time.perf_counter() + _TURN
    while (began := time.perf_counter()) < end:
        call()
        spent.append(time.perf_counter() - began)
    return 1000 * median(spent)


def _turns(python: str, path: Path, batch: int, size: int, call: Callable[[], object], rounds: int) -> dict[str, Any]:
    """Medians of both engines in turns."""
    command = [python, __file__, str(path), str(batch), str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        while (line := other.stdout.readline()) and line.strip() != "ready":
            pass
        _milliseconds(call)
        own, theirs = [], []
        for _ in range(rounds if line else 0):
            own.append(_milliseconds(call))
            other.stdin.write("\n")
            other.stdin.flush()
            theirs.append(float(other.stdout.readline()))
        other.stdin.close()
    if not theirs:
        return {"error": "DeepSparse does not take the network"}
    ours, peer = median(own), median(theirs)
    return {"milliseconds": round(ours, 4), "deepsparse": round(peer, 4), "times": round(peer / ours, 2)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the rows."""
    import torch

    import pathex
    from benchmarks.latency import CASES, MODELS, network, ticket
    from benchmarks.measure import Table, arguments

    parser = arguments(__doc__, "latency_beside_deepsparse")
    parser.add_argument("--python", required=True, help="of an environment with DeepSparse")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tickets", type=Path, help="folder that keeps masks")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table = Table(given.out, {"seed": given.seed, "tickets": "px, 10 images, 10 rounds"}, threads=1)
    for name in given.models:
        for sparsity, count in CASES:
            model, size = network(name, given.seed)
            pathex.make_permanent(model, ticket(model, name, size, sparsity, count, given.seed, given.tickets))
            for batch in given.batches:
                images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
                compiled = pathex.compile(model, example_input=images, threads=1)
                with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                    path = Path(folder) / "network.onnx"
                    torch.onnx.export(model, (images,), str(path), dynamo=False, opset_version=14)
                    call = lambda compiled=compiled, images=images: compiled(images)  # noqa: E731
                    found = _turns(given.python, path, batch, size, call, given.rounds)
                table.add({"model": name, "sparsity": sparsity, "count": count, "batch_size": batch, **found})
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 4 and not sys.argv[1].startswith("-"):
        serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        raise SystemExit(main())
