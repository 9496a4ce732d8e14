"""``pathex report``: tables, figures and a page from run folders."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pathex.cli._arguments import parse
from pathex.errors import InvalidInput

__all__ = ["execute"]


@dataclass(frozen=True)
class ReportConfig:
    """Options of ``pathex report``.

    Attributes:
        runs: Run folders, or folders that contain run folders at any depth.
        out: Folder of the report.
        published: ``auto`` draws published curves behind the runs of a published setting, ``none`` never does.
        x: What the metric is drawn against: ``sparsity``, ``parameters`` or ``multiply-adds``.
    """

    runs: tuple[str, ...] = ()
    out: str = "report"
    published: str = "auto"
    x: str = "sparsity"


def execute(words: Sequence[str]) -> None:
    """Carries out the command.

    Args:
        words: What follows ``pathex report``.

    Raises:
        InvalidInput: If no folder is named.
    """
    description = "Writes tables (CSV, Markdown), figures (PNG, SVG) and one self-contained page about finished runs."
    config = parse("report", ReportConfig, words, description, positional=("runs", 0))
    if not config.runs:
        raise InvalidInput("no run folder given; for instance: pathex report runs --out report")
    from pathex.report import build

    report = build([Path(folder) for folder in config.runs], Path(config.out), published=config.published, x=config.x)
    for folder, reason in report.left_out:
        print(f"left out {folder}: {reason}", file=sys.stderr)
    print(f"{report.runs} run{'' if report.runs == 1 else 's'}: {report.page}")
