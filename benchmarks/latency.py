"""Seconds of a forward pass on a CPU: dense runtimes, and `pathex.compile` at several sparsities.

    python -m benchmarks.latency --threads 1 --tickets /tmp/tickets

Networks have random weights; BatchNorm statistics come from three batches of normal numbers. Tickets are of `px`, ten
images, ten rounds; ``--tickets`` keeps them for another call. All columns of a row are measured in turns, seven rounds,
each the mean of as many calls as fit in ``--seconds``.

| column | meaning |
|---|---|
| `model`, `batch` | network, images of a call |
| `sparsity`, `count` | removed share of what is counted: weights, or multiply-adds |
| `multiply_adds_left` | share of the dense multiply-adds of convolutions and linear layers |
| `torch`, `channels_last`, `onnxruntime`, `openvino` | medians of milliseconds, dense |
| `compile` | the same of the compiled ticket |
| `times` | the fastest of the dense ones over `compile` |
| `sparse_layers`, `layers` | layers that kernels compute, of how many |
| `compile_seconds` | what `pathex.compile` took, choice included |
"""

import copy
import io
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pathex
from benchmarks.measure import Row, Table, arguments, command
from pathex.errors import PathexWarning

__all__ = ["CASES", "MODELS", "dense", "main", "network", "ticket"]

MODELS = {
    "resnet20": 32,
    "vgg16_bn": 32,
    "torchvision:resnet18": 224,
    "torchvision:resnet50": 224,
    "torchvision:mobilenet_v2": 224,
    "timm:efficientnet_lite0": 224,
    "timm:vit_tiny_patch16_224": 224,
}
CASES = ((0.9, "weights"), (0.95, "weights"), (0.982, "weights"), (0.95, "multiply_adds"))


def network(name: str, seed: int) -> tuple[nn.Module, int]:
    """A network at its own initialization whose BatchNorm has seen three batches, and the side of its images."""
    size = MODELS.get(name, 224 if ":" in name else 32)
    torch.manual_seed(seed)
    model = pathex.models.create(name, num_classes=10 if size == 32 else 1000)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, size, size, generator=generator))
    return model.eval(), size


def ticket(
    model: nn.Module, name: str, size: int, sparsity: float, count: str, seed: int, folder: Path | None
) -> pathex.Mask:
    """The mask of `px`, from a folder if it is there."""
    path = None if folder is None else folder / f"{name.replace(':', '-')}-{sparsity}-{count}-{seed}.safetensors"
    if path is not None and path.exists():
        return pathex.Mask.load(path)
    images = torch.randn(10, 3, size, size, generator=torch.Generator().manual_seed(seed))
    how: dict[str, Any] = {"rounds": 10, "seed": seed, "progress": False}
    mask = pathex.prune(model, "px", data=images, sparsity=sparsity, count=count, **how).mask
    if path is not None:
        folder.mkdir(parents=True, exist_ok=True)  # type: ignore[union-attr]
        mask.save(path)
    return mask


def dense(model: nn.Module, x: Tensor, threads: int) -> dict[str, Callable[[], object]]:
    """Calls of the dense network by the name of the runtime, of those that are installed."""
    images = x.contiguous(memory_format=torch.channels_last)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    calls: dict[str, Callable[[], object]] = {"torch": lambda: model(x), "channels_last": lambda: other(images)}
    array = np.ascontiguousarray(x.numpy())
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(model, (x,), data, dynamo=False, verbose=False)
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(data.getvalue(), options, providers=["CPUExecutionProvider"])
        given = {session.get_inputs()[0].name: array}
        calls["onnxruntime"] = lambda: session.run(None, given)
    except ImportError:
        pass
    try:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(data.getvalue()), "CPU", settings)
        calls["openvino"] = lambda: compiled([array])
    except ImportError:
        pass
    return calls


def milliseconds(calls: Mapping[str, Callable[[], object]], seconds: float, rounds: int = 7) -> dict[str, float]:
    """Medians over rounds in which all take turns."""
    counts = {}
    with torch.inference_mode():
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            counts[name] = max(1, min(200, int(seconds / (time.perf_counter() - start))))
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                start = time.perf_counter()
                for _ in range(counts[name]):
                    call()
                found[name].append((time.perf_counter() - start) / counts[name] * 1e3)
    return {name: round(statistics.median(values), 4) for name, values in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the rows."""
    parser = arguments(__doc__, "latency")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--tickets", type=Path, help="folder that keeps masks")
    parser.add_argument("--seconds", type=float, default=0.2, help="of each round of a column")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore", PathexWarning)
    table = Table(given.out, {"seed": given.seed, "tickets": "px, 10 images, 10 rounds"}, threads=given.threads)
    for name in given.models:
        model, size = network(name, given.seed)
        for batch in given.batches:
            x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(given.seed + 1))
            calls = dense(model, x, given.threads)
            for sparsity, count in CASES:
                mask = ticket(model, name, size, sparsity, count, given.seed, given.tickets)
                start = time.perf_counter()
                compiled = pathex.compile(model, mask, x, threads=given.threads)
                spent = time.perf_counter() - start
                times = milliseconds({**calls, "compile": lambda net=compiled, x=x: net(x)}, given.seconds)
                fastest = min(value for column, value in times.items() if column != "compile")
                chosen = compiled.choice.batch or compiled.choice.single
                counts = pathex.analysis.count(model, x.shape[1:])
                left = round(counts.multiply_adds(mask) / counts.multiply_adds(), 4)
                about: Row = {"model": name, "batch": batch, "sparsity": sparsity, "count": count}
                about |= {"multiply_adds_left": left, **times, "times": round(fastest / times["compile"], 2)}
                ways = list(chosen.values())
                about |= {"sparse_layers": ways.count("sparse"), "layers": len(ways)}
                table.add({**about, "compile_seconds": round(spent, 1)})
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))
