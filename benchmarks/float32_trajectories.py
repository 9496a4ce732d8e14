"""How far px in float32 strays from px in float64, per round and over a whole trajectory.

    python benchmarks/float32_trajectories.py                       # every case, minutes on two cores
    python benchmarks/float32_trajectories.py --cases resnet20 plain20 --out rows.csv

One trajectory is pruned in float64. At each of its rounds float32 scores the same mask, and the weights that both keep
are counted; a second trajectory runs in float32 alone. Written are one row per round (csv) and the environment (json).

| column | meaning |
|---|---|
| `network`, `sparsity`, `rounds` | the case |
| `round`, `density` | the round, from 1, and the density after it |
| `weights` | prunable weights of the network |
| `same` | share of the weights kept in float64 that float32 keeps from the same mask |
| `finite` | whether every float32 score is finite |
| `free_same`, `free_jaccard` | share and intersection over union of what the two free-running trajectories keep |
"""

import argparse
import csv
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import pathex
from pathex.allocate import keep_best
from pathex.errors import PathexError, PathexWarning, UnknownName
from pathex.prunable import prunable_weights
from pathex.runs.environment import environment
from pathex.schedule import densities

__all__ = ["CASES", "Case", "main", "plain", "trajectory"]

_ROWS = Path(__file__).parent / "rows" / "float32_trajectories.csv"


@dataclass(frozen=True)
class Case:
    """A network, its images and how it is pruned."""

    make: Callable[[], nn.Module]
    size: int
    images: int
    rounds: int
    sparsity: float


def plain(depth: int = 20, width: int = 32) -> nn.Module:
    """A chain of convolutions without BatchNorm, in PyTorch's own initialization: the sum over paths is tiny.

    Args:
        depth: Layers with weights.
        width: Channels.

    Returns:
        The network.
    """
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


def trajectory(case: Case, name: str, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Prune in float64 and in float32, and compare them round by round.

    Args:
        case: The case.
        name: Its name.
        seed: Seed of weights and images.

    Yields:
        One row per round.
    """
    torch.manual_seed(seed)
    narrow, images = case.make(), torch.randn(case.images, 3, case.size, case.size)
    torch.manual_seed(seed)
    wide = case.make().double()
    wide.load_state_dict(narrow.state_dict())
    guided = free = {key: torch.ones_like(w, dtype=torch.bool) for key, w in prunable_weights(narrow).items()}
    total = sum(keep.numel() for keep in guided.values())
    for number, density in enumerate(densities(1.0, 1 - case.sparsity, case.rounds), 1):
        kept = round(density * total)
        scores = pathex.score(narrow, "px", images, mask=pathex.Mask(guided))
        finite = all(bool(score.isfinite().all()) for score in scores.values())
        beside = keep_best(scores, guided, kept, seed=number)
        scores = scores if free is guided else pathex.score(narrow, "px", images, mask=pathex.Mask(free))
        free = keep_best(scores, free, kept, seed=number)
        guided = keep_best(
            pathex.score(wide, "px", images.double(), mask=pathex.Mask(guided)), guided, kept, seed=number
        )
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
    """Run the cases and write their rows.

    Args:
        argv: Arguments; None are those of the process.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=_ROWS, help="csv file; a json file is written beside it")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore", PathexWarning)
    rows: list[dict[str, Any]] = []
    try:
        for name in arguments.cases:
            if name not in CASES:
                raise UnknownName("case", name, CASES)
        for name in arguments.cases:
            rows += trajectory(CASES[name], name, arguments.seed)
            lowest = min(row["same"] for row in rows if row["network"] == name)
            print(f"{name}: at least {lowest:.4%} the same in a round, {rows[-1]['free_same']:.2%} at the end")
    except PathexError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _write(arguments.out, rows, arguments.seed)
    return 0


def _write(path: Path, rows: Sequence[Mapping[str, Any]], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    part.replace(path)
    names = {str(row["network"]) for row in rows}
    cases = {name: {k: v for k, v in asdict(CASES[name]).items() if k != "make"} for name in sorted(names)}
    about = {"seed": seed, "cases": cases, "environment": environment(torch.device("cpu"))}
    part = path.with_name(path.stem + ".json.part")
    part.write_text(json.dumps(about, indent=2) + "\n")
    part.replace(path.with_suffix(".json"))


if __name__ == "__main__":
    sys.exit(main())
