"""Runs as tables: one row a run and one row a setting, with intervals over seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean, stdev
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats

from pathex.experiments.report.records import RunRecord
from pathex.experiments.report.settings import OF_METHOD, series_settings, short
from pathex.experiments.runs import to_csv

EXPERIMENT = ["model", "data", "weights", "task"]
"""The columns that make one section of a report."""

GROUP = [*EXPERIMENT, "series", "method", "settings", "sparsity", "metric"]
"""The columns that make one row of the summary."""

_MEANS = ["density", "kept", "total", "parameters", "bytes", "multiply_adds", "zero_shot", "fine_tuned"]
_MEANS += ["chance", "dead_layers", "dead_outputs", "train_loss", "prune_seconds", "train_seconds"]
_OPTIONAL = ["parameters", "bytes", "multiply_adds", "zero_shot", "fine_tuned", "chance", "dead_outputs", "train_loss"]
_GAP = ["gap", "gap_low", "gap_high"]
_LABELS = {"accuracy": "test accuracy", "miou": "mean IoU"}
_LABELS |= {"val_accuracy": "validation accuracy", "val_miou": "validation mean IoU"}


def metric_label(metric: str) -> str:
    """What heads a column or an axis of the metric: in files a fraction, for people a percentage."""
    return _LABELS.get(metric, f"test {metric}")


def runs_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row a run."""
    named = zip(records, series_settings(records), series_settings(records, OF_METHOD), strict=True)
    rows = [_row(record, settings) | {"protocol": protocol} for record, settings, protocol in named]
    frame = pd.DataFrame(rows).astype(dict.fromkeys(_OPTIONAL, float))
    return frame.sort_values([*EXPERIMENT, "sparsity", "series", "seed", "run"]).reset_index(drop=True)


def _row(record: RunRecord, settings: str) -> dict[str, Any]:
    result, tasks = record.result, record.tasks
    kept, total = int(result["kept"]), int(result["total"])
    return {
        "run": record.folder.name,
        **dict(zip(EXPERIMENT, record.experiment, strict=True)),
        "series": f"{record.method} ({settings})" if settings else record.method,
        "method": record.method,
        "settings": settings,
        "sparsity": round(record.sparsity, 12),
        "seed": int(record.config["seed"]),
        "metric": record.metric,
        "value": record.value,
        "chance": 1 / len(result["classes"]) if record.task == "classification" and result.get("classes") else None,
        "zero_shot": fmean(row["zero_shot"] for row in tasks) if tasks else None,
        "fine_tuned": fmean(row["fine_tuned"] for row in tasks) if tasks else None,
        "kept": kept,
        "total": total,
        "density": kept / total,
        "parameters": result.get("parameters"),
        "bytes": result.get("bytes"),
        "multiply_adds": result.get("multiply_adds"),
        "dead_layers": int(result.get("dead_layers") or 0),
        "dead_outputs": result.get("dead_outputs"),  # earlier versions do not tell
        "train_loss": result.get("train_loss"),  # of the last epoch
        "prune_seconds": float(result.get("prune_seconds") or 0.0),
        "train_seconds": float(result.get("train_seconds") or 0.0),
        "rounds": result.get("rounds") if record.method != "dense" else None,
        "epochs": result.get("epochs", record.config.get("epochs")),
    }


def by_seed(runs: pd.DataFrame, column: str = "value") -> "pd.Series[float]":
    """One value a seed: runs of one seed, of other ``memory`` for instance, are not two independent repeats."""
    return runs.groupby("seed")[column].mean().dropna()


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each experiment, method, setting and sparsity; ``gap`` is to the best one there."""
    rows = []
    for _, level in runs.groupby([*EXPERIMENT, "sparsity", "metric"], sort=False):
        groups = dict(iter(level.groupby(GROUP, sort=False)))
        values = {key: by_seed(group) for key, group in groups.items()}
        best = max(values, key=lambda key: (len(values[key]), values[key].mean()))  # of those with most seeds
        for key, group in groups.items():
            found = estimate(values[key].tolist())
            gap = estimate([]) if key == best else difference(values[key], values[best])
            rows.append(
                dict(zip(GROUP, key, strict=True))
                | {"n": found.n, "mean": found.mean}
                | {"ci95_low": max(found.low, 0.0), "ci95_high": min(found.high, 1.0)}
                | {"gap": gap.mean, "gap_low": gap.low, "gap_high": gap.high}
                | group[_MEANS].mean().to_dict()
            )
    frame = pd.DataFrame(rows)
    order = [*EXPERIMENT, "sparsity", "mean", "series"]
    return frame.sort_values(order, ascending=[column != "mean" for column in order]).reset_index(drop=True)


def csv(frame: pd.DataFrame) -> str:
    """A table of runs or a summary as text, the metric in columns of its name."""
    column, prefix = ("value", "test_") if "value" in frame else ("mean", "mean_")
    written = frame.copy()
    for metric in frame["metric"].unique():
        values = frame[column].where(frame["metric"] == metric)
        name = metric if column == "value" and metric.startswith("val_") else prefix + metric
        written.insert(int(written.columns.get_loc(column)), name, values)
    empty = [name for name in (*_OPTIONAL, *_GAP) if name in written and written[name].isna().all()]
    return to_csv(written.drop(columns=[column, *empty]).drop(columns="protocol", errors="ignore"))


def markdown(summary: pd.DataFrame) -> str:
    """The summary in Markdown, a table for each metric."""
    return "\n".join(_markdown(rows) for _, rows in summary.groupby("metric"))


def _markdown(summary: pd.DataFrame) -> str:
    shown = columns(summary)
    lines = [[column.heading for column in shown]]
    lines += [["---" if column.key in {*EXPERIMENT, "series"} else "---:" for column in shown]]
    lines += [[column.text(row) for column in shown] for row in summary.to_dict("records")]
    return "".join(f"{_line(cells)}\n" for cells in lines)


class Column(NamedTuple):
    """A column of the table of results: the column of the summary that it is sorted by, its heading and its cells."""

    key: str
    heading: str
    text: Callable[[Mapping[Any, Any]], str]


def columns(summary: pd.DataFrame) -> list[Column]:
    """The columns of the table of results that have something to show, those of the experiment first."""
    known = [
        Column("model", "model", lambda row: str(row["model"])),
        Column("data", "data", lambda row: str(row["data"])),
        Column("weights", "weights", lambda row: short(row["weights"])),
        Column("series", "method", lambda row: str(row["series"])),
        Column("sparsity", "sparsity", lambda row: _cell("{:.6g}", row["sparsity"], row["method"])),
        Column("n", "seeds", lambda row: str(row["n"])),
        Column("mean", metric_label(str(summary["metric"].iloc[0])), lambda row: _cell("{:.2f} %", 100 * row["mean"])),
        Column("ci95_low", "95 % interval", _interval),
        Column("gap", "to the best, same seeds", _gap),
        Column("zero_shot", "zero-shot", lambda row: _cell("{:.2f} %", 100 * row["zero_shot"])),
        Column("fine_tuned", "fine-tuned", lambda row: _cell("{:.2f} %", 100 * row["fine_tuned"])),
        Column("kept", "kept weights", lambda row: _cell("{:,.0f}", row["kept"])),
        Column("total", "of", lambda row: _cell("{:,.0f}", row["total"])),
        Column("bytes", "on disk (MB)", lambda row: _cell("{:.3g}", row["bytes"] / 1e6)),
        Column("dead_layers", "dead layers", lambda row: _cell("{:.3g}", row["dead_layers"])),
        Column("dead_outputs", "dead outputs", lambda row: _cell("{:.3g}", row["dead_outputs"])),
        Column("prune_seconds", "pruning (s)", lambda row: _cell("{:.1f}", row["prune_seconds"], row["method"])),
    ]
    told = {name: summary[name].mask(summary[name].isin(["", 0])) for name in ("weights", "dead_outputs")}
    used = summary.assign(ci95_low=0, **told).notna().any()
    return [column for column in known if used[column.key]]


def _interval(row: Mapping[Any, Any]) -> str:
    """The 95 % interval of a row of the summary, in per cent; a dash if one seed gives none."""
    low, high = row["ci95_low"], row["ci95_high"]
    return "—" if pd.isna(low) else f"{100 * low:.2f} to {100 * high:.2f}"


def _gap(row: Mapping[Any, Any]) -> str:
    """How far a row is from the best one, in points, with the 95 % interval if there is one; a dash for the best."""
    if pd.isna(row["gap"]):
        return "—"
    among = "" if pd.isna(row["gap_low"]) else f" ({100 * row['gap_low']:.2f} to {100 * row['gap_high']:.2f})"
    return f"{100 * row['gap']:.2f}{among}"


def _cell(form: str, value: float, method: str = "") -> str:
    return "—" if method == "dense" or pd.isna(value) else form.format(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape(" ".join(cell.split()), quote=False).replace("|", "\\|") for cell in cells) + " |"


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    n: int
    mean: float
    half_width: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width

    @property
    def has_sign(self) -> bool:
        """Whether the interval leaves zero out; one value has no interval."""
        return abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval by Student's t."""
    n = len(values)
    half = stdev(values) / math.sqrt(n) * float(stats.t.ppf(0.975, n - 1)) if n > 1 else math.nan
    return Estimate(n, fmean(values) if n else math.nan, half)


def difference(first: "pd.Series[float]", second: "pd.Series[float]") -> Estimate:
    """By how much the first is above the second over the seeds of both, with which runs share networks and batches."""
    return estimate((first - second).dropna().tolist())
