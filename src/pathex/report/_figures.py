"""The figures of one model and data set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pathex.report._records import RunRecord
from pathex.report._style import INK, SETTINGS, Style
from pathex.report._tables import summary_table

__all__ = ["Panel", "Picture", "draw"]

_MOST_NAMES = 40


@dataclass(frozen=True)
class Panel:
    """What the figures of one model and data set are drawn from.

    Attributes:
        runs: Rows of the table of runs.
        records: The runs of these rows by name.
        look: Style of each series.
    """

    runs: pd.DataFrame
    records: Mapping[str, RunRecord]
    look: Mapping[str, Style]

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

    def series(self, rows: pd.DataFrame) -> list[str]:
        """Names of the series of some rows, in the order of their styles.

        Args:
            rows: Rows of the table of runs.

        Returns:
            The names.
        """
        present = set(rows["series"])
        return [name for name in self.look if name in present]


@dataclass(frozen=True)
class Picture:
    """One figure, drawn.

    Attributes:
        name: Name of its files, without suffix.
        title: Its heading.
        caption: What it shows.
        png: The picture as PNG.
        svg: The picture as SVG.
    """

    name: str
    title: str
    caption: str
    png: bytes
    svg: bytes


def draw(panel: Panel) -> list[Picture]:
    """Draws every figure that the runs have numbers for.

    Args:
        panel: The runs.

    Returns:
        The pictures, most telling first.
    """
    pictures: list[Picture] = []
    with mpl.rc_context(dict(SETTINGS)):
        if not panel.pruned.empty:
            pictures.append(_accuracy(panel))
            if any(panel.records[run].layers for run in panel.sparsest["run"]):
                pictures.append(_layers(panel))
            if panel.pruned["dead_layers"].any():
                pictures.append(_dead_layers(panel))
        if any(len(record.epochs) > 1 for record in panel.records.values()):
            pictures.append(_training(panel))
    return pictures


def _picture(figure: Figure, name: str, title: str, caption: str) -> Picture:
    files = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        stream = BytesIO()
        figure.savefig(stream, format=kind, dpi=160, metadata=metadata, bbox_inches="tight", pad_inches=0.12)
        files.append(stream.getvalue())
    return Picture(name, title, caption, *files)


def _accuracy(panel: Panel) -> Picture:
    levels = panel.pruned["sparsity"].nunique()
    figure = _accuracy_curves(panel) if levels > 1 else _accuracy_dots(panel)
    caption = f"Mean test accuracy over seeds; every {'dot' if levels > 1 else 'tick'} is one run. "
    if panel.runs.groupby("series")["seed"].nunique().max() > 1:
        mark = "Bands" if levels > 1 else "Bars"
        caption += f"{mark} are 95 % intervals of the mean by Student's t; wide ones are cut at the frame. "
    caption += "The axis is the density on a log scale, labelled with the sparsity. " if levels > 1 else ""
    return _picture(figure, "accuracy", "Test accuracy after training", caption.strip())


def _accuracy_curves(panel: Panel) -> Figure:
    figure = Figure(figsize=(9.0, 4.3))
    axes = figure.add_subplot()
    summary = summary_table(panel.pruned)
    for name in panel.series(panel.pruned):
        style, rows = panel.look[name], summary[summary["series"] == name].sort_values("sparsity")
        density, mean = 1 - rows["sparsity"], 100 * rows["mean_accuracy"]
        axes.fill_between(
            density, 100 * rows["ci95_low"], 100 * rows["ci95_high"], color=style.colour, alpha=0.13, lw=0
        )
        axes.plot(density, mean, style.dash, color=style.colour, marker=style.marker, ms=5.5, label=name, zorder=3)
        seeds = panel.pruned[panel.pruned["series"] == name]
        axes.plot(1 - seeds["sparsity"], 100 * seeds["test_accuracy"], ".", color=style.colour, ms=4, alpha=0.55)
    _dense_lines(panel, axes.axhline, axes.axhspan)
    _sparsity_axis(axes, sorted(panel.pruned["sparsity"].unique()))
    axes.set_ylabel("test accuracy (%)")
    axes.grid(axis="x", visible=False)
    axes.set_ylim(*_frame(panel))
    _legend(axes)
    return figure


def _accuracy_dots(panel: Panel) -> Figure:
    summary = summary_table(panel.pruned)
    ordered = summary.sort_values("mean_accuracy")["series"].tolist()
    figure = Figure(figsize=(9.0, 1.5 + 0.42 * len(ordered)))
    axes = figure.add_subplot()
    rows = summary.set_index("series")
    for height, name in enumerate(ordered):
        row, style = rows.loc[name], panel.look[name]
        seeds = 100 * panel.pruned.loc[panel.pruned["series"] == name, "test_accuracy"]
        if pd.notna(row["ci95_low"]):
            axes.plot(
                [100 * row["ci95_low"], 100 * row["ci95_high"]],
                [height] * 2,
                color=style.colour,
                lw=7,
                alpha=0.28,
                solid_capstyle="butt",
            )
            axes.plot(seeds, [height] * len(seeds), "|", color=style.colour, ms=9, mew=1.4)
        mean = 100 * row["mean_accuracy"]
        axes.plot(mean, height, style.marker, color=style.colour, ms=8)
        axes.annotate(f"{mean:.1f}", (1.01, height), xycoords=("axes fraction", "data"), va="center", fontsize=9.5)
    _dense_lines(panel, axes.axvline, axes.axvspan)
    axes.set_yticks(range(len(ordered)), ordered)
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlim(*_frame(panel))
    axes.set_xlabel(f"test accuracy (%) at sparsity {panel.pruned['sparsity'].iloc[0]:.6g}")
    axes.grid(axis="y", visible=False)
    if not panel.dense.empty:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=3)
    return figure


def _dense_lines(panel: Panel, line: Callable[..., object], span: Callable[..., object]) -> None:
    for row in summary_table(panel.dense).to_dict("records") if not panel.dense.empty else []:
        style, mean = panel.look[row["series"]], 100 * row["mean_accuracy"]
        line(mean, color=style.colour, linestyle="--", lw=1.4, label=f"{row['series']} ({mean:.1f})", zorder=2)
        if pd.notna(row["ci95_low"]):
            span(100 * row["ci95_low"], 100 * row["ci95_high"], color=style.colour, alpha=0.07, lw=0)


def _frame(panel: Panel) -> tuple[float, float]:
    """Limits that show every run, and of each interval no more than half of what the runs span.

    Args:
        panel: The runs.

    Returns:
        Lower and upper limit in per cent.
    """
    accuracy = 100 * panel.runs["test_accuracy"]
    low, high = accuracy.min(), accuracy.max()
    margin = max(0.08 * (high - low), 0.5)
    room = max(0.5 * (high - low), 1.0)
    summary = summary_table(panel.runs)
    lowest = (100 * summary["ci95_low"]).fillna(low).clip(lower=low - room).min()
    highest = (100 * summary["ci95_high"]).fillna(high).clip(upper=high + room).max()
    return max(0.0, min(low, lowest) - margin), min(100.0, max(high, highest) + margin)


def _sparsity_axis(axes: Axes, sparsities: Sequence[float]) -> None:
    density = [1 - value for value in sparsities]
    axes.set_xscale("log")
    axes.set_xlim(max(density) * 1.12, min(density) / 1.12)
    axes.xaxis.set_major_locator(FixedLocator(density))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1 - value:.4g}"))
    axes.set_xlabel("sparsity (fraction of weights removed)  →  sparser")


def _layers(panel: Panel) -> Picture:
    rows = panel.sparsest
    names = list(next(panel.records[run].layers for run in rows["run"] if panel.records[run].layers))
    figure = Figure(figsize=(9.0, 4.6))
    axes = figure.add_subplot()
    floor = 1.0
    curves: dict[str, np.ndarray] = {}
    for name in panel.series(rows):
        masks = [panel.records[run].layers for run in rows.loc[rows["series"] == name, "run"]]
        density = [[m[layer][0] / m[layer][1] if layer in m else np.nan for layer in names] for m in masks if m]
        if density:
            curves[name] = np.array(density).mean(axis=0)
            floor = min(floor, curves[name][curves[name] > 0].min(initial=1.0))
    bottom = floor / 2.5
    places = np.arange(len(names))
    for name, curve in curves.items():
        style, empty = panel.look[name], curve == 0
        drawn = np.where(empty, np.nan, curve)
        axes.plot(places, drawn, style.dash, color=style.colour, marker=style.marker, ms=3.8, lw=1.5, label=name)
        axes.plot(places[empty], np.full(empty.sum(), bottom), "x", color=style.colour, ms=7, mew=2, clip_on=False)
    axes.axhline(1 - rows["sparsity"].iloc[0], color=INK, lw=1, linestyle=":", label="whole network")
    axes.set_yscale("log")
    axes.set_ylim(bottom, min(1.25, 2 * max(np.nanmax(curve) for curve in curves.values())))
    axes.set_ylabel("density (fraction of weights kept)")
    step = -(-len(names) // _MOST_NAMES)
    short = [f"{index}  {name.removesuffix('.weight')}" for index, name in enumerate(names)]
    axes.set_xticks(places[::step], short[::step], rotation=90, fontsize=7.5)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.grid(axis="x", visible=False)
    _legend(axes)
    caption = f"Mean over seeds at sparsity {rows['sparsity'].iloc[0]:.6g}, layers from input to output."
    if any((curve == 0).any() for curve in curves.values()):
        caption += " A cross at the foot is a layer that lost every weight in every seed."
    return _picture(figure, "layers", "Density of each layer", caption)


def _dead_layers(panel: Panel) -> Picture:
    table = panel.pruned.pivot_table(index="sparsity", columns="series", values="dead_layers", aggfunc="mean")
    names, levels = panel.series(panel.pruned), table.index.tolist()
    figure = Figure(figsize=(9.0, 3.2))
    axes = figure.add_subplot()
    width = min(0.84 / len(names), 0.16)
    for number, name in enumerate(names):
        places = np.arange(len(levels)) + (number - (len(names) - 1) / 2) * width
        heights = table[name].to_numpy()
        axes.bar(places, heights, width * 0.9, color=panel.look[name].colour, label=name, hatch=_hatch(panel, name))
        for place, height in zip(places, heights, strict=True):
            if not np.isnan(height):
                axes.annotate(
                    f"{height:.2g}", (place, height), (0, 2), textcoords="offset points", ha="center", fontsize=8
                )
    axes.set_xticks(range(len(levels)), [f"{level:.6g}" for level in levels])
    axes.set_xlabel("sparsity")
    axes.set_ylabel("dead layers, mean")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set_ylim(0, max(1.0, table.max().max()) * 1.15)
    axes.grid(axis="x", visible=False)
    _legend(axes)
    caption = "Layers without a kept weight on any path from input to output, mean over seeds."
    return _picture(figure, "dead_layers", "Dead layers", caption)


def _hatch(panel: Panel, name: str) -> str | None:
    return {"-": None, "--": "//", "-.": "..", ":": "xx"}[panel.look[name].dash]


def _training(panel: Panel) -> Picture:
    rows = pd.concat([panel.dense, panel.sparsest]) if not panel.pruned.empty else panel.dense
    frames = {
        name: pd.concat([pd.DataFrame(panel.records[run].epochs) for run in rows.loc[rows["series"] == name, "run"]])
        for name in panel.series(rows)
    }
    frames = {name: frame for name, frame in frames.items() if "epoch" in frame}
    columns = set().union(*frames.values())
    right = "val_accuracy" if "val_accuracy" in columns else "train_accuracy"
    figure = Figure(figsize=(9.0, 3.4))
    for place, (column, label, factor) in enumerate(
        (
            ("train_loss", "training loss", 1.0),
            (right, "validation accuracy (%)" if right == "val_accuracy" else "training accuracy (%)", 100.0),
        )
    ):
        axes = figure.add_subplot(1, 2, place + 1)
        for name, frame in frames.items():
            if column in frame:
                mean, style = factor * frame.groupby("epoch")[column].mean(), panel.look[name]
                marker = style.marker if len(mean) <= 12 else ""
                axes.plot(mean.index, mean, style.dash, color=style.colour, marker=marker, ms=4, lw=1.6, label=name)
        axes.set_title(label)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.grid(axis="x", visible=False)
    figure.subplots_adjust(wspace=0.24)
    _legend(figure.axes[0], above=1.12)
    at = "" if panel.pruned.empty else f" at sparsity {panel.sparsest['sparsity'].iloc[0]:.6g}"
    caption = f"Mean over seeds{at}{', with the dense network' if at and not panel.dense.empty else ''}."
    return _picture(figure, "training", "Training", caption)


def _legend(axes: Axes, above: float = 1.02) -> None:
    columns = min(5, len(axes.get_legend_handles_labels()[1]))
    place = (-0.02, above)
    axes.legend(
        loc="lower left", bbox_to_anchor=place, borderaxespad=0, ncols=columns, handlelength=2, columnspacing=1.4
    )
