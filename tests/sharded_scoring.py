"""What each of two processes does in the tests of scoring weights that are spread over them."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import pathex
from pathex.paths import _made
from several_processes import batches, images, memory, network, quiet, raised, whole

CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "px": ("px", {}, 2),
    "px in chunks": ("px", {}, 0),
    "px redrawn": ("px", {"redraw": True}, 2),
    "px stored": ("px", {"calibration": "running"}, 100),
    "px-literal": ("px-literal", {}, 2),
    "synflow": ("synflow", {}, 2),
    "synflow-l2": ("synflow-l2", {}, 2),
    "snip": ("snip", {}, 2),
    "snip calibrated": ("snip", {"calibration": "batch"}, 2),
    "iterative-snip": ("iterative-snip", {}, 2),
    "magnitude": ("magnitude", {}, 2),
    "random": ("random", {}, 2),
}
"""Method, its options, and how many images fit into a micro-batch."""

MASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "px": ("px", {"rounds": 4, "sparsity": 0.9}),
    "px, gates used again": ("px", {"rounds": 4, "sparsity": 0.9, "reuse_gates": 2}),
    "px, adaptive": ("px", {"rounds": 20, "sparsity": 0.9, "schedule": "adaptive:0.02"}),
    "synflow, all on paths": ("synflow", {"rounds": 3, "sparsity": 0.95, "budget": "effective"}),
}


class Blocks(nn.Module):
    """Attention, whose projections are used by another module than their own, a head of zeros and one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm, self.first, self.second = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 3)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :48].unflatten(1, (8, 6))
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean(1))


class Deep(nn.Sequential):
    """Twelve layers, each large enough to be made again."""

    def __init__(self, layers: int = 12, width: int = 300) -> None:
        torch.manual_seed(1)
        super().__init__(*(part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())))


def scored(model: nn.Module, name: str) -> dict[str, Tensor]:
    method, options, per_part = CASES[name]
    return quiet(pathex.score, model, method, batches(*images()), memory=memory(per_part), seed=5, **options)


def pruned(model: nn.Module, name: str) -> pathex.Mask:
    method, options = MASKS[name]
    return quiet(pathex.prune, model, method, data=batches(*images()), memory=memory(2), seed=5, **options).mask


def spread(model: nn.Module) -> nn.Module:
    """The model, spread in parts: its linear layers one by one, and the rest."""
    for part in (*(part for part in model.children() if isinstance(part, nn.Linear)), model):
        fully_shard(part)
    return model


def most_gathered(model: nn.Module, x: Tensor) -> int:
    """Most entries of gathered weights that are alive at a time while a model is scored."""
    alive, most, gather = {}, 0, _made.in_one_piece

    def watched(tensor: Tensor) -> Tensor:
        nonlocal most
        found = gather(tensor)
        memory = found.untyped_storage()
        alive[memory._cdata] = found.numel()
        weakref.finalize(memory, alive.pop, memory._cdata, None)
        most = max(most, sum(alive.values()))
        return found

    _made.in_one_piece = watched
    try:
        pathex.score(model, "px", x)
    finally:
        _made.in_one_piece = gather
    return most


def of_two(rank: int) -> dict[str, Any]:
    x, _ = images()
    model, blocks = spread(network()), fully_shard(Blocks())
    kept = [(type(module), len(module._forward_pre_hooks), len(module._forward_hooks)) for module in model.modules()]
    found: dict[str, Any] = {"scores": {}, "placed": []}
    for name in CASES:
        scores = scored(model, name)
        found["scores"][name] = {weight: whole(score) for weight, score in scores.items()}
        found["placed"] += [
            score.placements == model.get_parameter(weight).placements for weight, score in scores.items()
        ]
    found["masks"] = {name: pruned(model, name) for name in MASKS}
    found["blocks"] = {w: whole(s) for w, s in quiet(pathex.score, blocks, "px", x.float()).items()}
    left = [(type(module), len(module._forward_pre_hooks), len(module._forward_hooks)) for module in model.modules()]
    found["as before"] = left == kept and torch.equal(model.eval()(x), network().eval()(x))
    found["refused"] = {}
    for method, options in (("grasp", {}), ("synflow", {"shifts": "released"}), (lambda *_: {}, {})):
        found["refused"][getattr(method, "__name__", method)] = raised(
            lambda method=method, options=options: pathex.score(model, method, batches(*images()), **options)
        )
    found["gathered"] = most_gathered(spread(Deep()), torch.randn(4, 300, generator=torch.Generator().manual_seed(0)))
    return found
