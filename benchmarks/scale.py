"""Seconds and peak memory of one round against parameters and images, and of a whole prune against rounds.

    python -m benchmarks.scale --threads 2
    python -m benchmarks.scale --models resnet20 resnet56 resnet110 --image-counts --round-counts

Every case is ``--method`` in a fresh process, one at a time. A series is a family of networks that differ in size, or
one network (``--model``) with more and more images or rounds. Own networks read the images they are made for, those of
libraries images of ``--image-size``. In the plot, all axes are logarithmic: the slope of a line is its exponent, and
what is flatter than the dotted line grows slower than linearly.

| column | meaning |
|---|---|
| `kind` | ``case``, or ``fit``: the exponents of the series above |
| `against`, `series` | what grows (``parameters``, ``images``, ``rounds``); name of the series |
| `parameters`, `weights_mib` | all parameters; memory of the prunable weights |
| `multiply_adds` | of one dense forward pass of all images |
| `round_seconds`, `round_low`, `round_high` | median and quartiles of ``--repeats`` rounds, after a first one |
| `seconds` | of a whole prune, where rounds grow |
| `resident_mib`, `tensor_mib` | peaks of resident memory and of live tensors, above what was there before |
| `within_budget` | whether ``tensor_mib`` stayed within ``--memory``: weights and scores must be less than half |
| `time_exponent`, `work_exponent`, `memory_exponent` | p of y = c x^p: seconds against what grows and against |
| | multiply-adds, memory against what grows |
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pandas as pd
import torch
from altair import LayerChart

import pathex
from benchmarks.measure import (
    ERROR,
    MIB,
    CaseFailed,
    Process,
    Row,
    Table,
    arguments,
    command,
    now,
    peak_memory,
    problem,
    quartiles,
    save,
    tensor_peak,
)
from pathex.analysis import count
from pathex.figures import DOTTED, curves, styles
from pathex.masks import prunable_weights

__all__ = ["Case", "cases", "exponent", "fit", "main"]

_MODELS = (
    *(f"resnet{depth}" for depth in (20, 32, 44, 56, 110)),
    *(f"torchvision:resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"timm:vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
)
# What grows, and the columns that are fitted against each other.
_FITS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "parameters": {
        "time_exponent": ("parameters", "round_seconds"),
        "work_exponent": ("multiply_adds", "round_seconds"),
        "memory_exponent": ("parameters", "tensor_mib"),
    },
    "images": {"time_exponent": ("images", "round_seconds"), "memory_exponent": ("images", "tensor_mib")},
    "rounds": {"time_exponent": ("rounds", "seconds")},
}


@dataclass(frozen=True)
class Case:
    """One case; ``rounds`` of 0 times single rounds, any other number whole prunes."""

    against: str
    series: str
    model: str
    images: int
    image_size: int
    rounds: int = 0


def cases(given: argparse.Namespace) -> list[Case]:
    """All cases, series by series."""

    def size(model: str) -> int:
        return given.image_size if ":" in model else 0

    # Networks that differ in size only have the start of their names in common.
    families = {name: re.match(r"(?:\w+:)?[a-z]*", name)[0] for name in given.models}  # type: ignore[index]
    series = sorted(given.models, key=families.__getitem__)
    one = ("images", given.model, given.model)
    return [
        *(Case("parameters", families[name], name, given.images, size(name)) for name in series),
        *(Case(*one, images, size(given.model)) for images in given.image_counts),
        *(Case("rounds", *one[1:], given.images, size(given.model), rounds) for rounds in given.round_counts),
    ]


def work(connection: Connection, case: Case, given: argparse.Namespace) -> None:
    """Measure one case and send the row."""
    device: torch.device = given.device
    model, x, y = problem(case.model, case.images, given.classes, given.seed, device, case.image_size)

    def prune(rounds: int, images: int = len(x), on_round: Callable[..., object] | None = None) -> None:
        how: dict[str, Any] = {"sparsity": given.sparsity, "rounds": rounds, "memory": given.memory}
        data = [(x[:images], y[:images])]
        pathex.prune(model, given.method, data=data, seed=given.seed, progress=False, on_round=on_round, **how)

    counts = count(model, tuple(x.shape[1:]))
    weights = sum(weight.nbytes for weight in prunable_weights(model).values()) / MIB
    row: Row = {"parameters": counts.parameters(), "weights_mib": round(weights, 1)}
    row |= {"multiply_adds": counts.multiply_adds() * len(x), "rounds": case.rounds or 1}
    prune(1, len(x) if device.type == "cuda" else 1)  # what is set up on first use is not what is measured
    with peak_memory(row):
        ends = [now(device)]
        prune(case.rounds or 1 + given.repeats, on_round=lambda *_: ends.append(now(device)))
        seconds = now(device) - ends[0]
    # The first round also sets up what stays for all of them.
    laps = np.diff(ends)[1:] if len(ends) > 2 else np.diff(ends)
    row |= dict(zip(("round_low", "round_seconds", "round_high"), quartiles(laps.tolist()), strict=True))
    row |= {"seconds": seconds} if case.rounds else {}
    peak = tensor_peak(device, lambda: prune(1))
    row |= {"tensor_mib": peak / MIB, "within_budget": peak <= pathex.scores.parse_memory(given.memory)}
    connection.send({name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()})


def fit(rows: Sequence[Row]) -> Iterator[Row]:
    """The exponents of a series, as a row; none for fewer than two sizes."""
    rows = [row for row in rows if ERROR not in row]
    if not rows or len({row[rows[0]["against"]] for row in rows}) < 2:
        return
    against = rows[0]["against"]
    exponents = {
        name: exponent([row[x] for row in rows], [row[y] for row in rows]) for name, (x, y) in _FITS[against].items()
    }
    yield {"kind": "fit", "against": against, "series": rows[0]["series"], **exponents}


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms: p of ``y = c x^p``."""
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 3)


def draw(table: Table) -> None:
    """Time and memory against parameters, work, images and rounds."""
    rows = table.frame()
    charts = []
    panels = [(against, name, *columns) for against, fits in _FITS.items() for name, columns in fits.items()]
    for against, name, x, y in panels:
        part, parts = rows[rows["against"] == against], []
        for series, points in part[part["kind"] == "case"].groupby("series", sort=False):
            fits = part[(part["kind"] == "fit") & (part["series"] == series)]
            label = f"{series}, exponent {fits[name].iloc[0]:.2f}" if len(fits) else str(series)
            known = points.dropna(subset=[x, y]).sort_values(x) if y in points else points.iloc[:0]
            columns = {x: known[x].astype(float), "mean": known[y].astype(float)} if len(known) else {}
            parts.append(pd.DataFrame(columns).assign(series=label))
        if means := [part for part in parts if len(part)]:
            charts.append(_chart(pd.concat(means), x, y))
    if charts:
        save(table.path, *charts)


def _chart(means: pd.DataFrame, x: str, y: str) -> LayerChart:
    """Series on two log scales, each with the dotted line of exponent one through its middle."""
    look = styles((name, name) for name in means["series"])
    slope = np.exp(np.log(means["mean"] / means[x]).groupby(means["series"]).transform("median"))
    linear = means.assign(mean=slope * means[x], colour=[look[name].colour for name in means["series"]])
    linear = linear.assign(marker="M0,0", dash=[[*DOTTED] for _ in means["series"]])
    return curves(means, x, x_title=x, y_title=y, log="xy", look=look, behind=linear)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the rows and draw them; 1 if a case failed."""
    parser = arguments(__doc__, "scale")
    parser.add_argument("--models", nargs="*", default=list(_MODELS))
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--image-size", type=int, default=64, help="for networks of libraries")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--model", default="resnet20", help="for growing numbers of images and rounds")
    parser.add_argument("--image-counts", nargs="*", type=int, default=[25, 50, 100, 200, 400])
    parser.add_argument("--round-counts", nargs="*", type=int, default=[10, 20, 50, 100])
    parser.add_argument("--method", default="px")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--memory", default="8GiB", help="budget of scoring")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that are timed")
    given = parser.parse_args(argv)
    table = Table(given.out, {k: v for k, v in vars(given).items() if k != "out"}, given.device, given.threads)
    series: list[Row] = []
    for case in cases(given):
        if series and (series[-1]["against"], series[-1]["series"]) != (case.against, case.series):
            for row in fit(series):
                table.add(row)
            series = []
        process = Process(work, case, given, threads=given.threads)
        about = {"kind": "case", "against": case.against, "series": case.series, "model": case.model}
        try:
            series.append({**about, "images": case.images, **process.answer()})
        except CaseFailed as failure:
            series.append({**about, "images": case.images, ERROR: str(failure)})
        finally:
            process.end()
        table.add(series[-1])
    for row in fit(series):
        table.add(row)
    draw(table)
    return int(any(ERROR in row for row in table.rows))


if __name__ == "__main__":
    raise SystemExit(command(main))
