"""How many of the same weights `px-literal` keeps as its data-free control `synflow-l2`, and as `px`.

    python benchmarks/literal_overlap.py                                # ResNet-20, 100 embedded images, 100 rounds
    python benchmarks/literal_overlap.py --data npz:cifar10.npz --out benchmarks/rows/literal_overlap-cifar10.csv

One row for each pair of methods and each kind of BatchNorm statistics: the share of kept weights that both keep, their
Jaccard index, and the share of all weights on which they decide alike (which says little: at sparsity 0.982 two random
masks decide alike on 96 % of the weights). In float64.
"""

import argparse
import itertools
from pathlib import Path

import pandas as pd
import torch

import pathex

METHODS = ("px-literal", "synflow-l2", "px")


def main() -> None:
    """Measure and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mini")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--sparsity", type=float, default=0.982)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "rows" / "literal_overlap-fashion-mini.csv")
    args = parser.parse_args()
    data = pathex.data.load(args.data)
    images = pathex.data.pruning_set(data, 10, 0).images.double()
    torch.manual_seed(0)
    model = pathex.models.create("resnet20", data.num_classes, data.in_channels).double()
    rows = []
    for calibration in ("running", "batch"):
        options = {"sparsity": args.sparsity, "rounds": args.rounds, "calibration": calibration}
        masks = {name: pathex.prune(model, name, data=images, **options).mask for name in METHODS}
        for (one, a), (other, b) in itertools.combinations(masks.items(), 2):
            alike = sum(int((a[name] == b[name]).sum()) for name in a) / a.total
            overlap = {"same_kept": (a & b).kept / a.kept, "jaccard": a.jaccard(b), "decided_alike": alike}
            rows.append({"calibration": calibration, "method": one, "other": other, **overlap})
            print(rows[-1], flush=True)
    pd.DataFrame(rows).round(5).to_csv(args.out, index=False)


if __name__ == "__main__":
    main()
