"""What the figures of one experiment are drawn from, and what all of them share: colours, files, legends."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pathex.experiments.report.published import within
from pathex.experiments.report.records import RunRecord
from pathex.experiments.report.tables import metric_label

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

_WIDTH_OF_LEGEND = 105


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


@dataclass(frozen=True)
class Panel:
    """What the figures of one experiment are drawn from."""

    runs: pd.DataFrame
    records: Mapping[str, RunRecord]
    look: Mapping[str, Style]
    x: str
    published: pd.DataFrame

    @property
    def metric(self) -> str:
        """Name of the metric of the runs."""
        return str(self.runs["metric"].iloc[0])

    @property
    def label(self) -> str:
        """What the metric is called on an axis, without the unit."""
        return metric_label(self.metric)

    @property
    def pruned(self) -> pd.DataFrame:
        """The rows of pruned runs."""
        return self.runs[self.runs["method"] != "dense"]

    @property
    def dense(self) -> pd.DataFrame:
        """The rows of dense runs."""
        return self.runs[self.runs["method"] == "dense"]

    @property
    def sparsest(self) -> pd.DataFrame:
        """The pruned rows of the highest sparsity."""
        return self.pruned[self.pruned["sparsity"] == self.pruned["sparsity"].max()]

    @property
    def behind(self) -> pd.DataFrame:
        """The published values that can be drawn behind the runs: those against sparsity, where the runs are."""
        levels = self.pruned["sparsity"].unique().tolist() if self.x == "sparsity" else []
        return within(self.published, levels)

    def series(self, rows: pd.DataFrame) -> list[str]:
        """Names of the series of some rows, in the order of their styles."""
        present = set(rows["series"])
        return [name for name in self.look if name in present]


@dataclass(frozen=True)
class Picture:
    """One figure, drawn."""

    name: str
    title: str
    caption: str
    png: bytes
    svg: bytes


def picture(figure: Figure, name: str, title: str, caption: str) -> Picture:
    """A figure as files."""
    files = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        stream = BytesIO()
        figure.savefig(stream, format=kind, dpi=160, metadata=metadata, bbox_inches="tight", pad_inches=0.12)
        files.append(stream.getvalue())
    return Picture(name, title, caption, *files)


def legend(axes: Axes, above: float = 1.02, extra: Sequence[Line2D] = ()) -> None:
    """Puts the legend above the axes, in as many columns as the names leave room for."""
    handles, names = axes.get_legend_handles_labels()
    handles, names = [*handles, *extra], [*names, *(str(line.get_label()) for line in extra)]
    if not names:
        return
    columns = max(1, min(5, len(names), _WIDTH_OF_LEGEND // (max(map(len, names)) + 8)))
    axes.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(-0.02, above),
        borderaxespad=0,
        ncols=columns,
        handlelength=2,
        columnspacing=1.4,
    )


def seeds_said(runs: pd.DataFrame) -> str:
    """How many seeds a mean is over."""
    counts = runs.groupby(["series", "sparsity"])["seed"].nunique()
    low, high = int(counts.min()), int(counts.max())
    return f"n = {low if low == high else f'{low} to {high}'} seed{'' if high == 1 else 's'}"
