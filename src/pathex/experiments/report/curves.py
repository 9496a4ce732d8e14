"""The metric of one experiment against sparsity, parameters or multiply-adds, with published curves behind."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedFormatter, FixedLocator, LogLocator, NullFormatter, NullLocator

from pathex.errors import InvalidInput
from pathex.experiments.report.panel import INK, Panel, Picture, legend, picture, seeds_said
from pathex.experiments.report.published import ALIASES
from pathex.experiments.report.published import caption as published_caption
from pathex.experiments.report.tables import summary_table

X_AXES = ("sparsity", "parameters", "multiply-adds")
"""What the metric can be drawn against."""

_AXIS_LABELS = {
    "parameters": "parameters kept, biases and normalisation included",
    "multiply-adds": "multiply-adds of the sparse network for one image",
}
_SOURCE_DASHES = ((0, (4, 2)), (0, (1, 1.4)))
_SOURCE_MARKERS = ("D", "s")
_GREY = "#6b7280"
_HOLLOW: Mapping[str, Any] = MappingProxyType(
    {"lw": 1.1, "alpha": 0.8, "ms": 4.5, "markerfacecolor": "white", "markeredgewidth": 0.9, "zorder": 1.5}
)
_LABEL_GAP = 0.062


def curves(panel: Panel) -> Picture:
    """The main figure."""
    title = f"{panel.label[0].upper()}{panel.label[1:]} after training"
    if panel.x != "sparsity":
        figure, caption = _against_size(panel)
        title += f", against {panel.x}"
    elif panel.pruned["sparsity"].nunique() > 1:
        figure, caption = _against_sparsity(panel)
    else:
        figure, caption = _dots(panel)
    return picture(figure, panel.metric, title, caption)


def _caption(panel: Panel, one: str, interval: str) -> str:
    caption = f"Means over seeds ({seeds_said(panel.runs)}); every {one} is one run. "
    if panel.runs.groupby(["series", "sparsity"])["seed"].nunique().max() > 1:
        caption += f"{interval} are 95 % intervals of the mean by Student's t; wide ones are cut at the frame. "
    chance, low = 100 * panel.runs["chance"].mean(), _frame(panel)[0]
    return caption + (f"Chance, {chance:.1f} %, lies below the frame. " if chance < low else "")


def _against_sparsity(panel: Panel) -> tuple[Figure, str]:
    figure = Figure(figsize=(9.0, 5.0))
    axes = figure.add_subplot()
    sources = _published_curves(panel, axes)
    _draw_series(panel, axes, panel.pruned, lambda rows: 1 - rows["sparsity"])
    _dense_lines(panel, axes.axhline, axes.axhspan)
    sparsities = sorted(panel.pruned["sparsity"].unique())
    density = [1 - value for value in sparsities]
    axes.set_xscale("log")
    axes.set_xlim(max(density) * 1.12, min(density) / 1.12)
    axes.xaxis.set_major_locator(FixedLocator(density))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FixedFormatter(_labels(sparsities)))
    axes.set_xlabel("sparsity (fraction of weights removed)  →  sparser")
    _value_axis(panel, axes)
    legend(axes, extra=sources)
    caption = _caption(panel, "dot", "Bands")
    caption += "The axis is the density on a log scale, labelled with the sparsity. "
    return figure, (caption + published_caption(panel.behind)).strip()


def _against_size(panel: Panel) -> tuple[Figure, str]:
    column = panel.x.replace("-", "_")
    runs = panel.runs[panel.runs[column].notna()]
    if runs.empty:
        one = panel.runs["run"].iloc[0]
        raise InvalidInput(f"no run like {one!r} holds {column} in its result.json; use --x sparsity or run it again")
    figure = Figure(figsize=(9.0, 5.0))
    axes = figure.add_subplot()
    _draw_series(panel, axes, runs, lambda rows: rows[column])
    sizes = runs[column]
    axes.set_xscale("log")
    axes.set_xlim(sizes.min() / 1.15, sizes.max() * 1.15)
    decades = math.log10(sizes.max() / sizes.min())
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3.5 else (1.0, 2.0, 5.0), numticks=20))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(_AXIS_LABELS[panel.x])
    _value_axis(panel, axes)
    legend(axes)
    caption = _caption(panel, "dot", "Bands and bars")
    caption += "A point stands at the mean size of its networks, on a log scale. "
    if len(runs) < len(panel.runs):
        caption += f"{len(panel.runs) - len(runs)} of {len(panel.runs)} runs hold no {panel.x} and are not drawn. "
    return figure, caption.strip()


def _dots(panel: Panel) -> tuple[Figure, str]:
    rows = summary_table(panel.pruned).sort_values("mean").set_index("series")
    figure = Figure(figsize=(9.0, 1.5 + 0.42 * len(rows)))
    axes = figure.add_subplot()
    for height, name in enumerate(rows.index):
        row, style = rows.loc[name], panel.look[name]
        seeds = 100 * panel.pruned.loc[panel.pruned["series"] == name, "value"]
        if pd.notna(row["ci95_low"]):
            interval = [100 * row["ci95_low"], 100 * row["ci95_high"]]
            axes.plot(interval, [height] * 2, color=style.colour, lw=7, alpha=0.28, solid_capstyle="butt")
            axes.plot(seeds, [height] * len(seeds), "|", color=style.colour, ms=9, mew=1.4)
        mean = 100 * row["mean"]
        axes.plot(mean, height, style.marker, color=style.colour, ms=8)
        axes.annotate(f"{mean:.1f}", (1.01, height), xycoords=("axes fraction", "data"), va="center", fontsize=9.5)
    sources = _published_dots(panel, axes, rows["method"].tolist())
    _dense_lines(panel, axes.axvline, axes.axvspan)
    axes.set_yticks(range(len(rows)), rows.index.tolist())
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(*_frame(panel))
    axes.set_xlabel(f"{panel.label} (%) at sparsity {panel.pruned['sparsity'].iloc[0]:.6g}")
    axes.grid(axis="y", visible=False)
    legend(axes, extra=sources)
    return figure, (_caption(panel, "tick", "Bars") + published_caption(panel.behind)).strip()


def _draw_series(
    panel: Panel, axes: Axes, runs: pd.DataFrame, place: Callable[[pd.DataFrame], "pd.Series[float]"]
) -> None:
    """Draws mean and interval of each series, and a dot for each of its runs."""
    summary = summary_table(runs).sort_values("sparsity")
    for name in panel.series(runs):
        rows, seeds, style = summary[summary["series"] == name], runs[runs["series"] == name], panel.look[name]
        x, (low, mean, high) = place(rows), (100 * rows[column] for column in ("ci95_low", "mean", "ci95_high"))
        if len(rows) > 1:
            axes.fill_between(x, low, high, color=style.colour, alpha=0.11, lw=0)
        else:  # a band needs two points
            axes.vlines(x, low, high, color=style.colour, alpha=0.3, lw=4)
        axes.plot(x, mean, style.dash, color=style.colour, marker=style.marker, ms=5.5, label=name, zorder=3)
        axes.plot(place(seeds), 100 * seeds["value"], ".", color=style.colour, ms=3.5, alpha=0.5)


def _published_curves(panel: Panel, axes: Axes) -> list[Line2D]:
    """Draws the published curves; returns entries of the legend that name the sources."""
    entries = []
    for number, (source, rows) in enumerate(panel.behind.groupby("source", sort=False)):
        dash = _SOURCE_DASHES[number]
        pruned = rows[rows["method"] != "dense"].sort_values("sparsity")
        for method, curve in pruned.groupby("method"):
            look = _muted(panel, str(method)) | {"linestyle": dash}
            axes.plot(1 - curve["sparsity"], 100 * curve["value"], **look)
        if not pruned.empty:
            look = {**_HOLLOW, "color": _GREY, "marker": "o", "linestyle": dash}
            entries.append(Line2D([], [], label=f"published: {source}", **look))
        entries += _published_dense(axes.axhline, rows, dash)
    return entries


def _published_dots(panel: Panel, axes: Axes, methods: Sequence[str]) -> list[Line2D]:
    """Draws the published values beside those of the same method; returns the legend's entries for the sources."""
    entries = []
    for number, (source, rows) in enumerate(panel.behind.groupby("source", sort=False)):
        look = dict(_HOLLOW) | {"color": INK, "marker": _SOURCE_MARKERS[number], "ms": 7, "linestyle": "none"}
        look |= {"markerfacecolor": "none", "zorder": 4}
        values = rows.set_index("method")["value"].dropna()
        found = [(height, ALIASES.get(method, method)) for height, method in enumerate(methods)]
        found = [(height, method) for height, method in found if method in values.index]
        for height, method in found:
            axes.plot(100 * values[method], height, **look)
        if found:
            entries.append(Line2D([], [], label=f"published: {source}", **look))
        entries += _published_dense(axes.axvline, rows, _SOURCE_DASHES[number])
    return entries


def _published_dense(line: Callable[..., object], rows: pd.DataFrame, dash: Any) -> list[Line2D]:
    entries = []
    for row in rows[rows["method"] == "dense"].to_dict("records"):
        source, value = row["source"], 100 * row["value"]
        line(value, color=_GREY, linestyle=dash, lw=1.1, zorder=1.5)
        entries.append(Line2D([], [], color=_GREY, linestyle=dash, lw=1.1, label=f"dense, {source} ({value:.1f})"))
    return entries


def _muted(panel: Panel, method: str) -> dict[str, Any]:
    """How a published curve is drawn: like the first series of its method, its own name before its aliases."""
    methods = dict(zip(panel.runs["series"], panel.runs["method"], strict=True))
    own = [name for name in panel.series(panel.runs) if methods[name] == method]
    others = [name for name in panel.series(panel.runs) if ALIASES.get(methods[name]) == method]
    style = panel.look[[*own, *others][0]]
    return {**_HOLLOW, "color": style.colour, "marker": style.marker}


def _dense_lines(panel: Panel, line: Callable[..., object], span: Callable[..., object]) -> None:
    for row in summary_table(panel.dense).to_dict("records") if not panel.dense.empty else []:
        style, mean = panel.look[row["series"]], 100 * row["mean"]
        line(mean, color=style.colour, linestyle="--", lw=1.4, label=f"{row['series']} ({mean:.1f})", zorder=2)
        if pd.notna(row["ci95_low"]):
            span(100 * row["ci95_low"], 100 * row["ci95_high"], color=style.colour, alpha=0.07, lw=0)
    if (chance := 100 * panel.runs["chance"].mean()) >= _frame(panel)[0]:
        line(chance, color=_GREY, linestyle=":", lw=1.1, label=f"chance ({chance:.1f})", zorder=1.5)


def _value_axis(panel: Panel, axes: Axes) -> None:
    axes.set_ylabel(f"{panel.label} (%)")
    axes.grid(axis="x", visible=False)
    axes.set_ylim(*_frame(panel))


def _frame(panel: Panel) -> tuple[float, float]:
    """Limits that show every run and published value, and of each interval no more than half of what they span."""
    values = 100 * pd.concat([panel.runs["value"], panel.behind["value"].dropna()])
    low, high = values.min(), values.max()
    margin = max(0.08 * (high - low), 0.5)
    room = max(0.5 * (high - low), 1.0)
    summary = summary_table(panel.runs)
    lowest = (100 * summary["ci95_low"]).fillna(low).clip(lower=low - room).min()
    highest = (100 * summary["ci95_high"]).fillna(high).clip(upper=high + room).max()
    return max(0.0, min(low, lowest) - margin), min(100.0, max(high, highest) + margin)


def _labels(sparsities: Sequence[float]) -> list[str]:
    """A label for each tick, empty where it would run into the one before or into the last."""
    places = [-math.log(1 - value) for value in sparsities]
    gap = _LABEL_GAP * (places[-1] - places[0])
    labels, last = [], -math.inf
    for place, value in zip(places, sparsities, strict=True):
        fits = place - last >= gap and places[-1] - place >= gap
        keep = fits or place == places[-1]
        labels.append(f"{value:.4g}" if keep else "")
        last = place if keep else last
    return labels
