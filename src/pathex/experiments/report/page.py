"""The report as one page that needs nothing beside it."""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from pathex.experiments.report.panel import Picture
from pathex.experiments.report.records import Problem, RunRecord
from pathex.experiments.report.style import Style
from pathex.experiments.report.tables import interval, metric_label

Section = tuple[str, str, pd.DataFrame, Sequence[Picture]]
"""Heading, finding, summary and pictures of one experiment."""

_SHOWN: tuple[str, ...] = (
    *("status", "method", "sparsity", "seed", "metric", "test_accuracy", "test_miou", "kept", "total", "parameters"),
    *("bytes", "multiply_adds", "dead_layers", "dead_layer_names", "rounds", "epochs"),
    *("prune_seconds", "train_seconds"),
)


def page(
    title: str,
    lead: str,
    sections: Sequence[Section],
    records: Sequence[RunRecord],
    problems: Sequence[Problem],
    look: Mapping[str, Style],
    shared: str,
    commands: Sequence[str],
) -> str:
    """Renders the page."""
    environments = Counter(json.dumps(record.environment) for record in records if record.environment)
    environment = Environment(
        loader=PackageLoader("pathex.experiments.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _inline
    environment.filters["shown"] = _shown
    text = environment.get_template("report.html.j2").render(
        title=title,
        lead=lead,
        sections=[
            {
                "heading": heading,
                "finding": finding,
                "rows": _rows(summary, look),
                "pictures": pictures,
                "metric": metric_label(str(summary["metric"].iloc[0])),
                "tasks": bool(summary["zero_shot"].notna().any()),
            }
            for heading, finding, summary, pictures in sections
        ],
        runs=[
            {
                "name": record.folder.name,
                "result": {name: record.result[name] for name in _SHOWN if name in record.result},
                "config": record.config,
            }
            for record in records
        ],
        problems=problems,
        environments=[(json.loads(content), count) for content, count in environments.items()],
        shared=shared,
        commands=commands,
    )
    return text + "\n"


def _inline(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def _shown(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "—"
    return str(value)


def _rows(summary: pd.DataFrame, look: Mapping[str, Style]) -> list[dict[str, Any]]:
    rows = [{str(name): value for name, value in row.items()} for row in summary.to_dict("records")]
    best = summary[summary["method"] != "dense"].groupby("sparsity")["mean"].max()
    for number, row in enumerate(rows):
        row["colour"] = look[row["series"]].colour
        row["best"] = row["method"] != "dense" and row["mean"] == best[row["sparsity"]]
        row["first"] = number > 0 and row["sparsity"] != rows[number - 1]["sparsity"]
        row["interval"] = interval(row)
    return rows
