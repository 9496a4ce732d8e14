"""``pathex report``: tables, figures and a page from run folders."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pathex.cli.parser import Command
from pathex.errors import InvalidInput


@dataclass(frozen=True)
class ReportOptions:
    """Options of ``pathex report``.

    Attributes:
        runs: Run folders, or folders that contain run folders at any depth.
        out: Folder of the report.
        published: ``auto`` draws published curves behind the runs of a published setting, ``none`` never does.
        x: What the metric is drawn against.
    """

    runs: tuple[str, ...] = ()
    out: str = "report"
    published: Literal["auto", "none"] = "auto"
    x: Literal["sparsity", "parameters", "multiply-adds"] = "sparsity"


def _execute(options: ReportOptions) -> None:
    if not options.runs:
        raise InvalidInput("no run folder given; for instance: pathex report runs --out report")
    from pathex.experiments.report import build

    folders = [Path(folder) for folder in options.runs]
    report = build(folders, Path(options.out), published=options.published, x=options.x)
    for folder, reason in report.left_out:
        print(f"left out {folder}: {reason}", file=sys.stderr)
    print(f"{report.runs} run{'' if report.runs == 1 else 's'}: {report.page}")


COMMAND = Command(
    "tables, figures and one page from finished runs",
    _execute,
    ReportOptions,
    "Writes tables (CSV, Markdown), figures (PNG, SVG) and one self-contained page about finished runs.",
    positional=("runs", "*", "Run folders, or folders that contain run folders at any depth."),
)
