"""How many of the same weights `px-literal` keeps as its data-free control `synflow-l2`, and as `px`.

    python -m benchmarks.literal_overlap                                # ResNet-20, 100 embedded images, 100 rounds
    python -m benchmarks.literal_overlap --data npz:cifar10.npz --out rows.csv

One row for each pair of methods and each kind of BatchNorm statistics: the share of kept weights that both keep, their
Jaccard index, and the share of all weights on which they decide alike (which says little: at sparsity 0.982 two random
masks decide alike on 96 % of the weights). In float64.
"""

import itertools
from collections.abc import Sequence

import torch

import pathex
from benchmarks.measure import Table, arguments, command

METHODS = ("px-literal", "synflow-l2", "px")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the rows."""
    parser = arguments(__doc__, "literal_overlap")
    parser.add_argument("--data", default="fashion-mini")
    parser.add_argument("--images-per-class", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--sparsity", type=float, default=0.982)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    data = pathex.data.load(given.data)
    images = pathex.data.pruning_set(data, given.images_per_class, given.seed).images.double()
    torch.manual_seed(given.seed)
    model = pathex.models.create("resnet20", data.num_classes, data.in_channels).double()
    table = Table(given.out, {"rounds": given.rounds, "sparsity": given.sparsity, "seed": given.seed})
    for calibration in ("running", "batch"):
        options = {"sparsity": given.sparsity, "rounds": given.rounds, "calibration": calibration}
        masks = {name: pathex.prune(model, name, data=images, **options).mask for name in METHODS}
        for (one, a), (other, b) in itertools.combinations(masks.items(), 2):
            alike = sum(int((a[name] == b[name]).sum()) for name in a) / a.total
            overlap = {"same_kept": (a & b).kept / a.kept, "jaccard": a.jaccard(b), "decided_alike": alike}
            rounded = {name: round(value, 5) for name, value in overlap.items()}
            table.add({"calibration": calibration, "method": one, "other": other, **rounded})
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))
