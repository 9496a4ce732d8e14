"""What the figures of one experiment are drawn from, and what they are."""

from collections.abc import Mapping
from dataclasses import dataclass

import altair as alt
import pandas as pd

from pathex.experiments.report.published import within
from pathex.experiments.report.records import RunRecord
from pathex.experiments.report.tables import metric_label
from pathex.figures import Style


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
    """One figure: charts below each other, or across the page."""

    name: str
    title: str
    caption: str
    charts: tuple[alt.LayerChart, ...]
    across: bool = False


def seeds_said(runs: pd.DataFrame) -> str:
    """How many seeds a mean is over."""
    counts = runs.groupby(["series", "sparsity"])["seed"].nunique()
    low, high = int(counts.min()), int(counts.max())
    return f"n = {low if low == high else f'{low} to {high}'} seed{'' if high == 1 else 's'}"
