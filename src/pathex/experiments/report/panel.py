"""What the figures of one experiment are drawn from, and what all of them share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pathex.experiments.report.published import within
from pathex.experiments.report.records import RunRecord
from pathex.experiments.report.style import Style
from pathex.experiments.report.tables import metric_label

_WIDTH_OF_LEGEND = 105


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
