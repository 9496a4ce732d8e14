"""From run folders to the files of a report."""

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from pathex.errors import InvalidInput
from pathex.report._figures import Panel, Picture, draw
from pathex.report._findings import headline, what_was_run
from pathex.report._page import Section, page
from pathex.report._records import Problem, RunRecord, read_all
from pathex.report._style import Style, styles
from pathex.report._tables import commands, markdown, nested, runs_table, shared_settings, summary_table

__all__ = ["ReportFiles", "build"]

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


def build(folders: Sequence[Path], out: Path) -> ReportFiles:
    """Reads runs and writes tables, figures and a page about them.

    The same runs give the same files, byte for byte. Nothing is written before everything is computed.

    Args:
        folders: Run folders, or folders that contain run folders at any depth.
        out: Folder of the report; made if needed.

    Returns:
        The files and what was left out.

    Raises:
        InvalidInput: If a folder does not exist, no finished run is found, or ``out`` cannot be written.
    """
    records, problems = read_all([Path(folder) for folder in folders])
    files, figures = _render(records, problems)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write(out / name, content)
    except OSError as error:
        raise InvalidInput(f"report cannot be written to {out}: {error.strerror or error}") from error
    return ReportFiles(
        page=out / "index.html",
        table=out / "table.csv",
        summary=out / "summary.csv",
        markdown=out / "summary.md",
        settings=out / _SETTINGS,
        figures=tuple(out / name for name in figures),
        runs=len(records),
        left_out=tuple((problem.folder, problem.reason) for problem in problems),
    )


def _render(records: Sequence[RunRecord], problems: Sequence[Problem]) -> tuple[dict[str, bytes], list[str]]:
    runs = runs_table(records)
    named = {record.folder.name: record for record in records}
    if len(named) < len(records):
        twice = next(name for name in named if sum(record.folder.name == name for record in records) > 1)
        raise InvalidInput(f"two run folders are named {twice!r}: a report takes each run once")
    summary = summary_table(runs)
    look = styles(zip(runs["method"], runs["series"], strict=True))
    sections, drawn = _sections(runs, summary, named, look)
    common = shared_settings(records)
    shared = yaml.safe_dump(nested(common), sort_keys=True, allow_unicode=True)
    ordered = [named[name] for name in runs["run"]]
    lines = commands(ordered, common, _SETTINGS)
    html = page(_title(runs), what_was_run(runs), sections, ordered, problems, look, shared, lines)
    files = {
        "table.csv": runs.to_csv(index=False).encode(),
        "summary.csv": summary.to_csv(index=False).encode(),
        "summary.md": markdown(summary).encode(),
        _SETTINGS: shared.encode(),
        **drawn,
        "index.html": html.encode(),
    }
    return files, list(drawn)


def _sections(
    runs: pd.DataFrame, summary: pd.DataFrame, named: dict[str, RunRecord], look: dict[str, Style]
) -> tuple[list[Section], dict[str, bytes]]:
    sections: list[Section] = []
    drawn: dict[str, bytes] = {}
    several = len(runs[["model", "data"]].drop_duplicates()) > 1
    for (model, data), rows in runs.groupby(["model", "data"]):
        panel = Panel(rows, {name: named[name] for name in rows["run"]}, look)
        pictures: list[Picture] = draw(panel)
        suffix = "_" + re.sub(r"[^A-Za-z0-9]+", "-", f"{model}-{data}").strip("-") if several else ""
        for picture in pictures:
            drawn[f"{picture.name}{suffix}.png"] = picture.png
            drawn[f"{picture.name}{suffix}.svg"] = picture.svg
        part = summary[(summary["model"] == model) & (summary["data"] == data)]
        sections.append((f"{model} on {data}", headline(rows), part, pictures))
    return sections, drawn


def _title(runs: pd.DataFrame) -> str:
    pairs = runs[["model", "data"]].drop_duplicates()
    where = f"{pairs['model'].iloc[0]} on {pairs['data'].iloc[0]}" if len(pairs) == 1 else f"{len(pairs)} experiments"
    return f"Pruning before training: {where}"


def _write(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
