"""How far px in float32 strays from px in float64, per round and over a whole trajectory.

    python -m benchmarks.float32_trajectories                       # every case, minutes on two cores
    python -m benchmarks.float32_trajectories --cases resnet20 plain20 --out rows.csv

One trajectory is pruned in float64. At each of its rounds float32 scores the same mask, and the weights that both keep
are counted; a second trajectory runs in float32 alone. One row for each round:

| column | meaning |
|---|---|
| `network`, `sparsity`, `rounds`, `weights` | the case, and its prunable weights |
| `round`, `density` | the round, from 1, and the density after it |
| `same` | share of the weights kept in float64 that float32 keeps from the same mask |
| `finite` | whether every float32 score is finite |
| `free_same`, `free_jaccard` | share and intersection over union of what the two free-running trajectories keep |
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

import pathex
from benchmarks.measure import Row, Table, arguments, command
from pathex.errors import PathexWarning
from pathex.masks import prunable_weights
from pathex.pruning import densities
from pathex.pruning.topk import keep_best

__all__ = ["CASES", "Case", "main", "plain", "trajectory"]


@dataclass(frozen=True)
class Case:
    """A network, its images and how it is pruned."""

    make: Callable[[], nn.Module]
    size: int
    images: int
    rounds: int
    sparsity: float


def plain(depth: int = 20, width: int = 32) -> nn.Module:
    """A chain of convolutions without BatchNorm, in PyTorch's own initialization: the sum over paths is tiny."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


CASES: Mapping[str, Case] = {
    "resnet20": Case(lambda: pathex.models.create("resnet20"), 32, 20, 100, 0.982),
    "vgg16_bn-quarter": Case(lambda: pathex.models.create("vgg16_bn", width=0.25), 32, 20, 20, 0.982),
    "vgg16_bn": Case(lambda: pathex.models.create("vgg16_bn"), 32, 10, 8, 0.982),
    "torchvision-resnet50": Case(lambda: torchvision.models.resnet50(num_classes=10), 64, 10, 5, 0.956),
    "plain20": Case(plain, 16, 20, 20, 0.9),
    "plain20-sparse": Case(plain, 16, 20, 20, 0.98),
}


def trajectory(case: Case, name: str, seed: int = 0) -> Iterator[Row]:
    """Prune in float64 and in float32, and compare them round by round."""
    torch.manual_seed(seed)
    narrow, images = case.make(), torch.randn(case.images, 3, case.size, case.size)
    torch.manual_seed(seed)
    wide = case.make().double()
    wide.load_state_dict(narrow.state_dict())
    guided = free = {key: torch.ones_like(w, dtype=torch.bool) for key, w in prunable_weights(narrow).items()}
    total = sum(keep.numel() for keep in guided.values())

    def keep(model: nn.Module, mask: dict[str, Tensor], kept: int, number: int) -> tuple[dict[str, Tensor], bool]:
        data = images.to(next(model.parameters()).dtype)
        scores = pathex.score(model, "px", data, mask=pathex.Mask(mask))
        finite = all(bool(score.isfinite().all()) for score in scores.values())
        return dict(keep_best(scores, mask, kept, seed=number)), finite

    for number, density in enumerate(densities(1.0, 1 - case.sparsity, case.rounds), 1):
        kept = round(density * total)
        beside, finite = keep(narrow, guided, kept, number)
        free = beside if free is guided else keep(narrow, free, kept, number)[0]
        guided, _ = keep(wide, guided, kept, number)
        common = _common(guided, free)
        yield {
            "network": name,
            "sparsity": case.sparsity,
            "rounds": case.rounds,
            "weights": total,
            "round": number,
            "density": round(density, 6),
            "same": round(_common(guided, beside) / kept, 6),
            "finite": finite,
            "free_same": round(common / kept, 6),
            "free_jaccard": round(common / (2 * kept - common), 6),
        }


def _common(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> int:
    return sum(int((one[name] & other[name]).sum()) for name in one)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases and write their rows."""
    parser = arguments(__doc__, "float32_trajectories")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="NAME")
    given = parser.parse_args(argv)
    warnings.simplefilter("ignore", PathexWarning)
    torch.set_num_threads(given.threads)
    table = Table(given.out, {"seed": given.seed, "cases": given.cases}, threads=given.threads)
    for name in given.cases:
        for row in trajectory(CASES[name], name, given.seed):
            table.add(row)
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))
