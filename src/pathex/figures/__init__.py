"""Pictures: tables with named columns become Altair charts, in one style for pages, files and notebooks."""

from pathex.figures.forms import curves, dots, flow, heat_map, matrix, spectrum
from pathex.figures.output import embedded, painted, save, script
from pathex.figures.style import DASHED, DOTTED, GREY, HOLLOW, INK, Style, level, styles

__all__ = [
    "DASHED",
    "DOTTED",
    "GREY",
    "HOLLOW",
    "INK",
    "Style",
    "curves",
    "dots",
    "embedded",
    "flow",
    "heat_map",
    "level",
    "matrix",
    "painted",
    "save",
    "script",
    "spectrum",
    "styles",
]
