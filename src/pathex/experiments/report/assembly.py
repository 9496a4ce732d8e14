"""From run folders to the files of a report, one of them a page that needs nothing beside it."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from pathex.errors import InvalidInput, check_name, refusing
from pathex.experiments.report.curves import X_AXES
from pathex.experiments.report.figures import draw
from pathex.experiments.report.findings import different_totals, headline, what_was_run
from pathex.experiments.report.panel import Panel
from pathex.experiments.report.published import no_curves, published_for
from pathex.experiments.report.records import RunRecord, read_all
from pathex.experiments.report.settings import commands, nested, shared_settings, short
from pathex.experiments.report.tables import EXPERIMENT, Column, columns, csv, markdown, runs_table, summary_table
from pathex.figures import Style, embedded, painted, script, styles
from pathex.files import write_bytes

_SHOWN: tuple[str, ...] = (
    *("status", "method", "sparsity", "seed", "metric", "test_accuracy", "test_miou", "kept", "total", "parameters"),
    *("bytes", "multiply_adds", "dead_layers", "dead_layer_names", "dead_outputs"),
    *("rounds", "epochs", "prune_seconds", "train_seconds", "train_loss"),
)
_SETTINGS = "settings.yaml"


@dataclass(frozen=True)
class ReportFiles:
    """What a report consists of.

    Attributes:
        page: The page, ``index.html``.
        table: One row a run, ``table.csv``.
        summary: One row a setting, ``summary.csv``.
        markdown: The same for people, ``summary.md``.
        settings: The settings all runs share, ``settings.yaml``; the commands on the page read it.
        figures: Each figure as PNG and as SVG.
        runs: Number of runs in the tables.
        left_out: The folder and the reason of each run left out.
    """

    page: Path
    table: Path
    summary: Path
    markdown: Path
    settings: Path
    figures: tuple[Path, ...]
    runs: int
    left_out: tuple[tuple[Path, str], ...]


def build(
    folders: Sequence[Path], out: Path, *, published: str = "auto", x: str = "sparsity", split: str = "test"
) -> ReportFiles:
    """Reads runs and writes tables, figures and a page about them.

    The same runs give the same files, byte for byte. Nothing is written before everything is computed.

    Args:
        folders: Run folders, or folders that contain run folders at any depth.
        out: Folder of the report; made if needed.
        published: ``auto`` draws published curves behind the runs of a published setting, ``none`` never does.
        x: What the metric is drawn against: ``sparsity``, ``parameters`` or ``multiply-adds``.
        split: Of which images the metric is: ``test``, or ``validation``, those held out of the training images, by
            which to choose.

    Returns:
        The files and what was left out.

    Raises:
        InvalidInput: If a folder does not exist, no finished run is found, the runs do not say how large their networks
            are and ``x`` asks for it, or ``out`` cannot be written.
        UnknownName: If ``published``, ``x`` or ``split`` is none of these words.
    """
    check_name("choice for published", published, ("auto", "none"))
    check_name("x axis", x, X_AXES)
    check_name("split", split, ("test", "validation"))
    records, problems = read_all([Path(folder) for folder in folders], split)
    named: dict[str, RunRecord] = {}
    for record in records:
        if (other := named.setdefault(record.folder.name, record)) is not record:
            twice = f"{record.folder.name!r}, {other.folder} and {record.folder}"
            raise InvalidInput(f"two run folders are named {twice}: a report takes each run once")
    runs = runs_table(records)
    summary, ordered = summary_table(runs), [named[name] for name in runs["run"]]
    look = styles(zip(runs["method"], runs["series"], strict=True))
    sections, drawn = _sections(runs, summary, named, look, published if split == "test" else "none", x)
    common = shared_settings(records)
    shared, lines = yaml.safe_dump(nested(common), allow_unicode=True), commands(ordered, common, _SETTINGS)
    said = {"title": _title(runs), "lead": what_was_run(runs), "sections": sections, "problems": problems}
    html = _page(ordered, **said, shared=shared, commands=lines)
    texts = {"table.csv": csv(runs), "summary.csv": csv(summary), "summary.md": markdown(summary)}
    texts |= {_SETTINGS: shared, "index.html": html}
    files = drawn | {name: text.encode(errors="backslashreplace") for name, text in texts.items()}
    out = Path(out)
    with refusing(f"report cannot be written to {out}: {{}}", OSError):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_bytes(out / name, content)
    return ReportFiles(
        page=out / "index.html",
        table=out / "table.csv",
        summary=out / "summary.csv",
        markdown=out / "summary.md",
        settings=out / _SETTINGS,
        figures=tuple(out / name for name in drawn),
        runs=len(records),
        left_out=tuple(problems),
    )


def _sections(
    runs: pd.DataFrame,
    summary: pd.DataFrame,
    named: dict[str, RunRecord],
    look: dict[str, Style],
    published: str,
    x: str,
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """What the page shows of each experiment, and the files of all figures by name."""
    sections: list[dict[str, Any]] = []
    drawn: dict[str, bytes] = {}
    experiments = list(runs.groupby([*EXPERIMENT, "metric"]))
    parts = summary.groupby([*EXPERIMENT, "metric"])
    for number, (key, rows) in enumerate(experiments, 1):
        records = {name: named[name] for name in rows["run"]}
        curves = published_for(list(records.values())) if published == "auto" else no_curves()
        pictures = draw(Panel(rows, records, look, x, curves))
        heading = _heading(rows.iloc[0])
        names = heading.replace(" on ", " ").replace(" weights ", " ")
        suffix = "_" + re.sub(r"[^A-Za-z0-9]+", "-", names).strip("-") if len(experiments) > 1 else ""
        if f"{pictures[0].name}{suffix}.png" in drawn:
            suffix += f"-{number}"
        for picture in pictures:
            files = painted(*picture.charts, across=picture.across)
            drawn |= {f"{picture.name}{suffix}.{kind}": file for kind, file in zip(("png", "svg"), files, strict=True)}
        part = parts.get_group(key)
        shown = [column for column in columns(part) if column.key not in {*EXPERIMENT, "total"}]
        sections.append(
            {
                "heading": heading,
                "finding": headline(rows) + different_totals(rows),
                "rows": _rows(part, look, shown),
                "columns": [column.heading for column in shown],
                "filters": {name: part[name].drop_duplicates().tolist() for name in ("series", "sparsity")},
                "pictures": pictures,
                "chance": part["chance"].max(),
            }
        )
    return sections, drawn


def _heading(row: "pd.Series[str]") -> str:
    heading = f"{short(row['model'])} on {short(row['data'])}"
    heading += f", weights {short(row['weights'])}" if row["weights"] else ""
    return heading + (", transfer" if row["task"] == "transfer" else "")


def _title(runs: pd.DataFrame) -> str:
    experiments = runs[EXPERIMENT].drop_duplicates()
    where = _heading(experiments.iloc[0]) if len(experiments) == 1 else f"{len(experiments)} experiments"
    return f"Pruning before training: {where}"


def _page(records: Sequence[RunRecord], **shown: Any) -> str:
    known = {json.dumps(record.environment): record.environment for record in records}
    environments = Counter(json.dumps(record.environment) for record in records if record.environment)
    loader = PackageLoader("pathex.experiments.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["embedded"] = embedded
    environment.filters["shown"] = _shown
    text = environment.get_template("report.html.j2").render(
        runs=records,
        of_result=_SHOWN,
        script=script(),
        environments=[(known[content], count) for content, count in environments.items()],
        **shown,
    )
    return text + "\n"


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


def _rows(summary: pd.DataFrame, look: Mapping[str, Style], shown: Sequence[Column]) -> list[dict[str, Any]]:
    """What the page shows of each row of the table of results: its cells, how they look, by what they are sorted."""
    best = summary[summary["method"] != "dense"].groupby("sparsity")["mean"].max()
    filters = {name: pd.factorize(summary[name])[0] for name in ("series", "sparsity")}
    ranks = [summary[column.key].rank(method="min").fillna(0).astype(int) for column in shown]
    starts = summary["sparsity"].diff().fillna(0).ne(0).tolist()
    rows = []
    for number, row in enumerate(summary.to_dict("records")):
        looks = {"mean": "best"} if row["method"] != "dense" and row["mean"] == best[row["sparsity"]] else {}
        looks |= {name: "warn" for name in ("dead_layers", "dead_outputs") if row[name] > 0}
        classes = [f"{name}-{place[number]}" for name, place in filters.items()] + ["level"] * starts[number]
        order = ";".join(f"--c{place}:{rank.iloc[number]}" for place, rank in enumerate(ranks))
        cells = [(column.text(row), looks.get(column.key)) for column in shown]
        colour, names = look[row["series"]].colour, " ".join(classes)
        rows.append({"cells": cells, "classes": names, "order": order, "colour": colour})
    return rows
