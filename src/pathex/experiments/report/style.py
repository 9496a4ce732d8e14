"""Colours that stay with a method through every figure and table, told apart by colour-blind readers too."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

INK = "#24292f"


# Okabe and Ito's colours for the methods most reports show, then Tol's, so that two reports agree with each other.
_COLOURS = MappingProxyType(
    {
        "dense": INK,
        "px": "#0072B2",
        "random": "#8a8f98",
        "magnitude": "#E69F00",
        "synflow": "#009E73",
        "ntk-sap": "#D55E00",
        "snip": "#CC79A7",
        "grasp": "#56B4E9",
        "imp": "#882255",
        "magnitude-after-training": "#999933",
        "small-dense": "#5b4636",
        "rigl": "#332288",
        "set": "#AA4499",
        "px-literal": "#6699CC",
        "px-cvpr24": "#7a3e9d",
        "synflow-l2": "#44AA99",
        "iterative-snip": "#EE99AA",
        "force": "#661100",
    }
)
_OTHER_COLOURS = ("#117733", "#994455", "#997700", "#66CCEE", "#228833", "#BB5566")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p", "h", "*", "d", "8", "H")
_DASHES = ("-", "--", "-.", ":")

SETTINGS = Path(__file__).with_name("templates") / "report.mplstyle"
"""Settings of Matplotlib under which figures are drawn and saved."""


@dataclass(frozen=True)
class Style:
    """How one series is drawn."""

    colour: str
    marker: str
    dash: str

    @property
    def hatch(self) -> str | None:
        """The line style, for bars."""
        return {"-": None, "--": "//", "-.": "..", ":": "xx"}[self.dash]


def styles(series: Iterable[tuple[str, str]]) -> dict[str, Style]:
    """One style a series."""
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
