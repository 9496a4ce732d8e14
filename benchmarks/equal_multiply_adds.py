"""Accuracy at equal multiply-adds: are weights or operations the thing to count?

    python -m benchmarks.equal_multiply_adds --jobs 2

For each share of the dense multiply-adds there are two tickets: ``count="multiply_adds"`` keeps that share, and
``count="weights"`` has the sparsity at which the same method comes to that share, found by bisection to 2 % of it.
Both tickets of a seed share initial weights, pruning set and the order of the training images. Runs are those of a
sweep below ``--runs``, so that a killed study goes on.

| column | meaning |
|---|---|
| `share` | multiply-adds asked for, of those of the dense network; 1 is the dense network |
| `count` | what sparsity counts |
| `density`, `multiply_adds` | kept weights and multiply-adds, as shares of the dense network |
| `accuracy` | on the test images |
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.measure import Table, arguments, command, study
from pathex.analysis import count
from pathex.experiments.runs import RunConfig, build_task, find_ticket, finished_result, pruning_seed, run_name
from pathex.experiments.sweep import SweepConfig

__all__ = ["main", "matching_sparsity", "summary"]

_TOLERANCE = 0.02


def matching_sparsity(config: RunConfig, share: float) -> float:
    """The sparsity of weights at which a method keeps a share of the multiply-adds, to 2 % of the share."""
    task = build_task(config)
    images = task.pruning_set(config.images_per_class, pruning_seed(config))
    counts = count(task.model, tuple(task.example.shape[1:]))
    low, high = 0.0, 1.0
    while True:
        sparsity = (low + high) / 2
        found = find_ticket(replace(config, sparsity=sparsity), task, images, lambda *_: None)[0].mask
        kept = counts.multiply_adds(found) / counts.multiply_adds()
        if abs(kept / share - 1) < _TOLERANCE or high - low < 1e-5:
            return sparsity
        low, high = (sparsity, high) if kept > share else (low, sparsity)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and differences between the two countings in pairs."""
    table = rows.groupby(["share", "count"], sort=False)[["density", "multiply_adds", "accuracy"]].mean()
    tickets = rows[rows["share"] < 1]
    pairs = tickets.pivot_table(index=["share", "seed"], columns="count", values="accuracy")
    if {"weights", "multiply_adds"} <= {*pairs}:
        groups = (pairs["multiply_adds"] - pairs["weights"]).groupby("share")
        found = pd.DataFrame({"difference": groups.mean(), "standard_error": groups.sem(), "seeds": groups.count()})
        table = table.join(found, on="share")
    return table.reset_index().round(5)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the runs, write rows and means; 1 if a run failed."""
    parser = arguments(__doc__, "equal_multiply_adds")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--data", default="fashion-mini")
    parser.add_argument("--method", default="px")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "equal-multiply-adds", help="where the runs go")
    parser.set_defaults(threads=1)
    given = vars(parser.parse_args(argv))
    shared = {name: given[name] for name in ("model", "data", "method", "rounds", "epochs", "batch_size", "lr")}
    shared |= {"model_options": {"width": given["width"]}, "device": str(given["device"])}
    listed: list[tuple[float, dict[str, Any]]] = []
    for seed in given["seeds"]:
        listed.append((1.0, {"method": "dense", "rounds": None, "seed": seed}))
        for share in given["shares"]:
            sparsity = matching_sparsity(RunConfig(**shared, seed=seed), share)
            listed.append((share, {"count": "weights", "sparsity": sparsity, "seed": seed}))
            listed.append((share, {"count": "multiply_adds", "sparsity": 1 - share, "seed": seed}))
    config = SweepConfig(
        settings=shared,
        list=tuple(entry for _, entry in listed),
        concurrent=given["jobs"],
        threads=given["threads"],
        out=str(given["runs"]),
    )
    runs = study(config)
    if not runs:
        return 1
    settings = {name: value for name, value in given.items() if name not in {"out", "runs", "data"}}
    table = Table(given["out"], settings, given["device"], given["threads"])
    dense = 1
    for (share, _), run in zip(listed, runs, strict=True):
        found = finished_result(Path(run.out) / run_name(run))
        assert found is not None
        dense = found["multiply_adds"] if run.method == "dense" else dense
        about = {"share": share, "count": "" if run.method == "dense" else run.count, "seed": run.seed}
        shares = {"density": found["kept"] / found["total"], "multiply_adds": found["multiply_adds"] / dense}
        shares = {name: round(value, 5) for name, value in shares.items()}
        table.add({**about, **shares, "accuracy": found["test_accuracy"]})
    means = summary(table.frame())
    table.write(means, given["out"].with_name(f"{given['out'].stem}-summary.csv"))
    print(means.to_string(index=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))
