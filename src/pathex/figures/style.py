"""How series are drawn: colours that the colour-blind tell apart on light and dark pages, markers, dashes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

INK = "currentColor"  # what the page writes with; black in files
GREY = "#8a8f98"

# Okabe and Ito's colours for the methods most reports show, then Tol's, so that two reports agree with each other.
_COLOURS = MappingProxyType(
    {
        "dense": INK,
        "px": "#0072B2",
        "random": GREY,
        "magnitude": "#E69F00",
        "synflow": "#009E73",
        "ntk-sap": "#D55E00",
        "snip": "#CC79A7",
        "grasp": "#56B4E9",
        "imp": "#B0447A",
        "magnitude-after-training": "#999933",
        "small-dense": "#8C6D4F",
        "rigl": "#6A5ACD",
        "set": "#AA4499",
        "px-literal": "#6699CC",
        "px-cvpr24": "#9467BD",
        "synflow-l2": "#44AA99",
        "iterative-snip": "#EE99AA",
        "force": "#A8553A",
    }
)
_OTHER_COLOURS = ("#228833", "#BB5566", "#997700", "#4A90C2", "#7A9A01", "#C0504D")


_MARKERS = (
    *("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-left", "triangle-right"),
    "M-1,-1L1,1L1,-1L-1,1Z",
    "M0,-1L0.95,-0.31L0.59,0.81L-0.59,0.81L-0.95,-0.31Z",
    "M0,-1L0.22,-0.31L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12L-0.95,-0.31L-0.22,-0.31Z",
)
SOLID: tuple[float, ...] = (1, 0)
DASHED: tuple[float, ...] = (5, 3)
DOTTED: tuple[float, ...] = (1.5, 2.5)
_DASHES = (SOLID, DASHED, (7, 2, 1.5, 2), DOTTED)
_SAMPLES = {DASHED: "M-1.4,0L-0.4,0M0.4,0L1.4,0", DOTTED: "M-1.4,0L-1,0M-0.2,0L0.2,0M1,0L1.4,0"}
HOLLOW = MappingProxyType(
    {
        "diamond": "M0,-1L1,0L0,1L-1,0ZM0,-0.6L-0.6,0L0,0.6L0.6,0ZM-2.2,0L-1,0M1,0L2.2,0",
        "square": "M-1,-1L1,-1L1,1L-1,1ZM-0.6,-0.6L-0.6,0.6L0.6,0.6L0.6,-0.6ZM-2.2,0L-1.8,0M1.8,0L2.2,0",
    }
)
"""Markers without a filling and a piece of their line, for legends."""


@dataclass(frozen=True)
class Style:
    """How one series is drawn.

    Attributes:
        colour: A colour of CSS; ``currentColor`` is that of the text around the figure.
        marker: A shape of Vega, or the path of one in a square from -1 to 1.
        dash: Pixels of line and gap in turns.
    """

    colour: str
    marker: str = "circle"
    dash: tuple[float, ...] = SOLID


def level(colour: str, dash: tuple[float, ...]) -> Style:
    """The style of a line across a chart, ``DASHED`` or ``DOTTED``; in the legend it is a piece of it."""
    return Style(colour, _SAMPLES[dash], dash)


def styles(series: Iterable[tuple[str, str]]) -> dict[str, Style]:
    """One style a series: a colour for each method, markers and dashes for the series of one method.

    Args:
        series: Pairs of a method and the name of one of its series.

    Returns:
        From names of series to styles, known methods first.
    """
    pairs = sorted(set(series))
    others = sorted({method for method, _ in pairs} - _COLOURS.keys())
    colours = {**_COLOURS, **{other: _OTHER_COLOURS[n % len(_OTHER_COLOURS)] for n, other in enumerate(others)}}
    drawn: dict[str, Style] = {}
    for rank, (method, colour) in enumerate(colours.items()):
        for number, name in enumerate(name for owner, name in pairs if owner == method):
            # A single point has no line: settings of one method have markers of their own too.
            marker = _MARKERS[(rank + 3 * number) % len(_MARKERS)]
            drawn[name] = Style(colour, marker, _DASHES[number % len(_DASHES)])
    return drawn


# In a page the width of the place, since that of the chart changes while it is laid out.
ROOM = "(isFinite(containerSize()[0]) ? containerSize()[0] - 80 : 640)"
_TEXT = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
# Everything but the marks is drawn in the colour of the text around, so that one figure fits light and dark pages.
THEME: Mapping[str, Any] = MappingProxyType(
    {
        "background": "transparent",
        "font": "Liberation Sans, Arial, Helvetica, sans-serif",
        "view": {"stroke": None},
        "axis": {
            **_TEXT,
            **{"gridColor": GREY, "gridOpacity": 0.25, "tickColor": INK, "domainColor": INK, "tickOpacity": 0.5},
            **{"domainOpacity": 0.5, "labelOverlap": "greedy", "labelSeparation": 6, "titlePadding": 8},
        },
        "axisX": {"grid": False, "labelLimit": 200},
        "axisY": {"ticks": False, "domain": False, "labelLimit": {"expr": f"0.6 * {ROOM}"}},
        "legend": {
            **_TEXT,
            **{"orient": "top", "symbolOpacity": 1, "symbolSize": 70, "columnPadding": 14, "offset": 10},
            **{"labelLimit": {"expr": ROOM}, "titleLimit": 300},
        },
    }
)
