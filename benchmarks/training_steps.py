"""A training step by kept weights beside the dense engine's, and where its time goes.

    python -m benchmarks.training_steps --threads 2
    python -m benchmarks.training_steps --models resnet20 --sparseprop --tickets tickets

A step is forward, backward and SGD with momentum for 128 images. ``dense`` is the network with its mask attached, in
the layout in which ``pathex run`` trains it; ``sparse`` is `pathex.sparse.convert`; both take turns. With
``--sparseprop``, SparseProp 0.1.14 (``pip install --no-deps sparseprop``) takes its turn too, its layers in place of
all convolutions but grouped ones.

| column | meaning |
|---|---|
| `model`, `side` | network and side of its images |
| `sparsity`, `count` | removed share of what is counted: weights, or multiply-adds |
| `dense_ms`, `sparse_ms`, `sparseprop_ms` | medians of the rounds |
| `times`, `times_low`, `times_high` | dense over sparse in one round: median and quartiles |
| `dense_mib`, `sparse_mib` | most bytes of tensors in a step, beside weights and optimizer |
| `state` | numbers that the optimizer holds over those of the dense one |
"""

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pathex
from benchmarks.latency import ticket
from benchmarks.measure import MIB, Table, arguments, command, quartiles, tensor_peak
from pathex import attach, models, sparse
from pathex.errors import PathexWarning
from pathex.graph import freed_memory_kept
from pathex.train import memory_format

__all__ = ["main"]

_MODELS = {"resnet20": 32, "vgg16_bn": 32, "torchvision:resnet18": 64}
_CASES = (
    (0.9, "weights"), (0.95, "weights"), (0.982, "weights"),
    (0.9, "multiply_adds"), (0.95, "multiply_adds"), (0.98, "multiply_adds"),
)  # fmt: skip
_ROUNDS, _BATCH = 7, 128


def _step(network: nn.Module, x: Tensor, labels: Tensor, mask: pathex.Mask | None) -> tuple[Callable[[], None], Any]:
    """A step of SGD, and its optimizer."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    if mask is not None:
        attach(network, mask, optimizer)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x), labels).backward()
        optimizer.step()

    return step, optimizer


def _with_sparseprop(network: nn.Module) -> nn.Module:
    """The network with SparseProp's layers."""
    from sparseprop.modules.conv2d import SparseConv2d

    for module in network.modules():
        for name, layer in module.named_children():
            if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.stride[0] == layer.stride[1]:
                setattr(module, name, SparseConv2d.from_dense(layer))
    return network


def _held(optimizer: Any) -> int:
    return sum(value.numel() for state in optimizer.state.values() for value in state.values() if value is not None)


def measured(
    model: nn.Module, mask: pathex.Mask, side: int, *, threads: int, peers: bool, rounds: int
) -> dict[str, Any]:
    """The columns of one case."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(_BATCH, 3, side, side, generator=generator)
    labels = torch.randint(10, (_BATCH,), generator=generator)
    pathex.make_permanent(model, mask)
    layout = memory_format(model)
    dense = copy.deepcopy(model).to(memory_format=layout)
    steps = {
        "dense": _step(dense, x.contiguous(memory_format=layout), labels, mask),
        "sparse": _step(sparse.convert(model, mask, x, threads=threads), x, labels, None),
    }
    if peers:
        steps["sparseprop"] = _step(_with_sparseprop(copy.deepcopy(model)), x, labels, None)
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for step, _ in steps.values():
        step()
        step()
    for _ in range(rounds):
        for name, (step, _) in steps.items():
            began = time.perf_counter()
            step()
            spent[name].append(1000 * (time.perf_counter() - began))
    times = [a / b for a, b in zip(spent["dense"], spent["sparse"], strict=True)]
    low, middle, high = quartiles(times)
    found = {f"{name}_ms": round(median(each), 2) for name, each in spent.items()}
    found |= {"times": round(middle, 2), "times_low": round(low, 2), "times_high": round(high, 2)}
    for name in ("dense", "sparse"):
        found[f"{name}_mib"] = round(tensor_peak(torch.device("cpu"), steps[name][0]) / MIB, 1)
    return {**found, "state": round(_held(steps["sparse"][1]) / _held(steps["dense"][1]), 4)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the rows."""
    parser = arguments(__doc__, "training-steps")
    parser.add_argument("--models", nargs="+", default=list(_MODELS))
    parser.add_argument("--sparseprop", action="store_true", help="measure SparseProp too, which must be installed")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--tickets", type=Path, help="folder that keeps masks")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore", PathexWarning)
    table = Table(given.out, {"seed": given.seed, "tickets": "px, 10 images, 10 rounds"}, threads=given.threads)
    with freed_memory_kept():
        for name in given.models:
            for sparsity, count in _CASES:
                torch.manual_seed(given.seed)
                model, side = models.create(name, num_classes=10), _MODELS[name]
                mask = ticket(model, f"{name}-{side}", side, sparsity, count, given.seed, given.tickets)
                how: dict[str, Any] = {"threads": given.threads, "peers": given.sparseprop, "rounds": given.rounds}
                row = measured(model.train(), mask, side, **how)
                table.add({"model": name, "side": side, "sparsity": sparsity, "count": count, **row})
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))
