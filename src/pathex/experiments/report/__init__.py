"""Tables, figures and one page from finished run folders. Reads folders only: nothing is trained or pruned here."""

from pathex.experiments.report.assembly import ReportFiles, build

__all__ = ["ReportFiles", "build"]
