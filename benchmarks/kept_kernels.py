"""What tickets keep of the Neural Tangent Kernel, at every sparsity of the published grid.

    python -m benchmarks.kept_kernels --data npz:cifar10.npz --seeds 0 1 2     # hours on two cores; goes on if stopped

ResNet-20 at its initialization, pruned on ten images of each class: methods with rounds in 99, of which every eleventh
is a point of the grid, others by the same scores at each point. The kernel is that of other images with calibrated
BatchNorm, exact, of kept weights and of all that is not pruned. A row for each method, seed and sparsity:

| column | meaning |
|---|---|
| `trace` | share of the trace of the dense network's kernel |
| `log_determinant` | of the kernel and 1e-4 mean eigenvalues of the dense one, per row, less that of the dense one |
| `alignment` | with the labels, centred |
| `accuracy` | of kernel regression, from half of the images to the others, in per cent |
| `effective_rank`, `condition` | of the kernel |

and, in ``-spectra``, eigenvalues at the last sparsity. With ``--runs``, the table of a report, ``-summary`` has rank
correlations, over methods, of these numbers and of the published accuracy with that of the runs on held-out images.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import pathex.experiments.report
from benchmarks.measure import Row, Table, arguments, command, save
from pathex import figures, ntk
from pathex.masks import Mask

POINTS, STEP, DENSITY = 9, 11, 0.018
_DRAWS = 1000
MEASURES = {"trace": "share of the trace", "log_determinant": "log-determinant per row, less dense",
            "alignment": "alignment with the labels", "accuracy": "kernel regression (%)"}  # fmt: skip
SHOWN = ("px", "ntk-sap", "synflow", "snip", "grasp", "magnitude", "random")


def _masks(model: nn.Module, name: str, data: tuple[Tensor, Tensor], seed: int) -> Iterator[tuple[float, Mask]]:
    """The masks of the grid, from few removed weights to many."""
    how: dict[str, Any] = {"data": data, "seed": seed, "progress": False}
    if pathex.methods(name).rounds > 1:
        found: list[Mask] = []
        pathex.prune(
            model, name, sparsity=1 - DENSITY, rounds=POINTS * STEP, on_round=lambda _, m: found.append(m), **how
        )
        yield from ((1 - DENSITY ** (n / POINTS), found[STEP * n - 1]) for n in range(1, POINTS + 1))
        return
    scores = pathex.score(model, name, data, seed=seed)
    for n in range(1, POINTS + 1):
        sparsity = 1 - DENSITY ** (n / POINTS)
        yield sparsity, pathex.prune(model, lambda *_: scores, sparsity=sparsity, rounds=1, **how).mask


def _measured(model: nn.Module, x: Tensor, y: Tensor, mask: Mask | None, dense: float = 0.0) -> tuple[Row, Tensor]:
    kernel = ntk.kernel(model, x, mask, batch_norm="calibrated", memory="4GiB")
    spectrum, known, k = ntk.spectrum(kernel), len(x) // 2, kernel.outputs
    values, wanted = kernel.values, torch.nn.functional.one_hot(y, k).double() - 1 / k
    inner = values[: known * k, : known * k] + 1e-3 * kernel.trace / len(values) * torch.eye(known * k).double()
    guess = values[known * k :, : known * k] @ torch.linalg.solve(inner, wanted[:known].reshape(-1, 1))
    right = guess.view(-1, k).argmax(1) == y[known:]
    ridge = 1e-4 * (dense or float(kernel.trace)) / len(values)
    row = {"trace": float(kernel.trace), "log_determinant": float(spectrum.log_determinant(ridge)) / len(values)}
    row |= {"alignment": ntk.alignment(kernel, y), "accuracy": 100 * float(right.double().mean())}
    row |= {"effective_rank": float(spectrum.effective_rank), "condition": float(spectrum.condition)}
    return row, spectrum.values[0].flip(0)


def predictors(rows: pd.DataFrame, runs: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Rank correlations with trained accuracy, over methods, with 95 % intervals of bootstrap samples of methods."""
    last = rows["sparsity"].max()
    plain = runs[
        (runs["series"] == runs["method"]) & (runs["sparsity"].round(3) == last) & runs["seed"].isin(rows["seed"])
    ]
    means = rows[rows["sparsity"] == last].drop(columns=["seed", "sparsity"]).groupby("method").mean()
    full = published[published[["data", "model", "sparsity"]].eq(["cifar10", "resnet20", last]).all(axis=1)]
    known = means.assign(published=full.groupby("method")["value"].mean())
    both = known.join(plain.groupby("method")[["val_accuracy", "multiply_adds"]].mean(), how="inner").rank()
    found = []
    for name in both.columns.drop("val_accuracy"):
        pair = both[[name, "val_accuracy"]].dropna()
        drawn = (pair.sample(frac=1, replace=True, random_state=draw) for draw in range(_DRAWS))
        low, high = pd.Series([sample.corr("spearman").iloc[0, 1] for sample in drawn]).quantile([0.025, 0.975])
        found.append((name, len(pair), pair.corr("spearman").iloc[0, 1], low, high))
    return pd.DataFrame(found, columns=["number", "methods", "spearman", "low", "high"]).round(3)


def draw(rows: pd.DataFrame) -> list[Any]:
    """One chart for each measure, over the sparsity."""
    shown = rows[rows["method"].isin([*SHOWN, "dense"])]
    look = {"dense": figures.level(figures.GREY, figures.DASHED), **figures.styles((name, name) for name in SHOWN)}
    charts = []
    for column, title in MEASURES.items():
        groups = shown[shown["method"] != "dense"].groupby(["method", "sparsity"], sort=False)[column]
        means = groups.agg(mean="mean", low="min", high="max").reset_index().rename(columns={"method": "series"})
        dense = shown.loc[shown["method"] == "dense", column].mean()
        levels = pd.DataFrame({"series": ["dense"], "mean": [dense]})
        log = "y" if column == "trace" else ""
        charts.append(
            figures.curves(means, "sparsity", x_title="sparsity", y_title=title, log=log, levels=levels, look=look)
        )
    return charts


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the rows."""
    parser = arguments(__doc__, "kept_kernels")
    parser.add_argument("--data", default="fashion-mini")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=[n for n in pathex.methods() if not pathex.methods(n).trains])
    parser.add_argument("--runs", type=Path, help="table.csv of pathex report --split validation")
    parser.add_argument("--images", type=int, default=150, help="of the kernel")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    data = pathex.data.load(given.data)
    old = [pd.read_csv(path) if path.exists() else pd.DataFrame() for path in (given.out, _spectra(given.out))]
    settings = {"seeds": given.seeds, "images": given.images, "data": given.data.rpartition("/")[2]}
    tables = [Table(given.out, settings, threads=given.threads), Table(_spectra(given.out), settings)]
    for table, rows in zip(tables, old, strict=True):
        table.rows += [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]
    for seed in given.seeds:
        images = pathex.data.pruning_set(data, 10, seed)
        probe = pathex.data.pruning_set(data, given.images // data.num_classes, seed + 1000)
        torch.manual_seed(seed)
        model = pathex.models.create("resnet20", data.num_classes, data.in_channels)
        order = torch.randperm(len(probe.labels), generator=torch.Generator().manual_seed(seed))
        x, y = probe.images[order], probe.labels[order]
        whole = _measured(model, x, y, None)
        dense = whole[0]
        for name in ["dense", *given.methods]:
            if any((row["method"], row["seed"]) == (name, seed) for row in tables[0].rows):
                continue
            pair = (images.images, images.labels)
            grid = [(0.0, None)] if name == "dense" else list(_masks(model, name, pair, seed))
            for sparsity, mask in grid:
                row, values = whole if mask is None else _measured(model, x, y, mask, dense["trace"])
                less = {"trace": row["trace"] / dense["trace"]}
                less["log_determinant"] = row["log_determinant"] - dense["log_determinant"]
                about = {"method": name, "seed": seed, "sparsity": round(sparsity, 3)}
                tables[0].add({**about, **{key: float(f"{value:.6g}") for key, value in {**row, **less}.items()}})
            ranks = torch.logspace(0, torch.log10(torch.tensor(float(len(values)))), 40).round().int().unique()
            for rank in ranks.tolist():
                tables[1].rows.append({"method": name, "seed": seed, "rank": rank, "value": float(values[rank - 1])})
            Table.write(tables[1].frame(), tables[1].path)
    save(given.out, *draw(tables[0].frame()))
    if given.runs is not None:
        published = pd.read_csv(Path(pathex.experiments.report.__file__).with_name("published.csv"))
        found = predictors(tables[0].frame(), pd.read_csv(given.runs), published)
        Table.write(found, given.out.with_name(f"{given.out.stem}-summary.csv"))
        print(found.to_string(index=False))
    return 0


def _spectra(path: Path) -> Path:
    return path.with_name(f"{path.stem}-spectra.csv")


if __name__ == "__main__":
    raise SystemExit(command(main))
