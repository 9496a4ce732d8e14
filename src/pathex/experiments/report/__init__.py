"""Tables, figures and one page from finished run folders. Reads folders only: nothing is trained or pruned here."""

from pathex.experiments.report.assembly import ReportFiles, build
from pathex.experiments.report.panel import SETTINGS

__all__ = ["SETTINGS", "ReportFiles", "build"]
