"""The figures of one experiment."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pathex.experiments.report.curves import curves
from pathex.experiments.report.panel import INK, SETTINGS, Panel, Picture, legend, picture, seeds_said
from pathex.experiments.report.tables import by_seed, estimate, metric_label

_PARTS = {"zero_shot": "zero-shot", "fine_tuned": "after fine-tuning"}
_MOST_NAMES = 40
_MOST_NUMBERS = 24


def draw(panel: Panel) -> list[Picture]:
    """Draws every figure that the runs have numbers for."""
    pictures: list[Picture] = []
    with mpl.rc_context(fname=SETTINGS):
        if panel.runs["zero_shot"].notna().any():
            pictures.append(transfer(panel))
        elif not panel.pruned.empty:
            pictures.append(curves(panel))
        if not panel.pruned.empty:
            if any(panel.records[run].layers for run in panel.sparsest["run"]):
                pictures.append(_layers(panel))
            if panel.pruned["dead_layers"].any():
                caption = "Layers without a kept weight on any path from input to output, mean over seeds."
                pictures.append(picture(_dead_layers_figure(panel), "dead_layers", "Dead layers", caption))
        if any(len(record.epochs) > 1 for record in panel.records.values()):
            pictures.append(_training(panel))
    return pictures


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
    legend(axes)
    caption = f"Mean over seeds at sparsity {rows['sparsity'].iloc[0]:.6g}, layers from input to output."
    if any((curve == 0).any() for curve in curves.values()):
        caption += " A cross at the foot is a layer that lost every weight in every seed."
    return picture(figure, "layers", "Density of each layer", caption)


def _dead_layers_figure(panel: Panel) -> Figure:
    table = panel.pruned.pivot_table(index="sparsity", columns="series", values="dead_layers", aggfunc="mean")
    names, levels = panel.series(panel.pruned), table.index.tolist()
    figure = Figure(figsize=(9.0, 3.2))
    axes = figure.add_subplot()
    width = min(0.84 / len(names), 0.16)
    for number, name in enumerate(names):
        places = np.arange(len(levels)) + (number - (len(names) - 1) / 2) * width
        style = panel.look[name]
        bars = axes.bar(places, table[name], width * 0.9, color=style.colour, label=name, hatch=style.hatch)
        if len(names) * len(levels) <= _MOST_NUMBERS:
            labels = ["" if np.isnan(height) else f"{height:.2g}" for height in table[name]]
            axes.bar_label(bars, labels, padding=2, fontsize=8)
    axes.set_xticks(range(len(levels)), [f"{level:.6g}" for level in levels])
    axes.set_xlabel("sparsity")
    axes.set_ylabel("dead layers, mean")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set_ylim(0, max(1.0, table.max().max()) * 1.15)
    axes.grid(axis="x", visible=False)
    legend(axes)
    return figure


def _training(panel: Panel) -> Picture:
    rows = pd.concat([panel.dense, panel.sparsest]) if not panel.pruned.empty else panel.dense
    frames = {
        name: pd.concat([pd.DataFrame(panel.records[run].epochs) for run in rows.loc[rows["series"] == name, "run"]])
        for name in panel.series(rows)
    }
    frames = {name: frame for name, frame in frames.items() if "epoch" in frame}
    columns = set().union(*frames.values())
    part = "val" if f"val_{panel.metric}" in columns else "train"
    name = metric_label(panel.metric).removeprefix("test ")
    right = f"{'validation' if part == 'val' else 'training'} {name} (%)"
    figure = Figure(figsize=(9.0, 3.4))
    for place, (column, label, factor) in enumerate(
        (("train_loss", "training loss", 1.0), (f"{part}_{panel.metric}", right, 100.0))
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
    legend(figure.axes[0], above=1.12)
    at = "" if panel.pruned.empty else f" at sparsity {panel.sparsest['sparsity'].iloc[0]:.6g}"
    over = "seeds and tasks" if panel.runs["zero_shot"].notna().any() else "seeds"
    caption = f"Mean over {over}{at}{', with the dense network' if at and not panel.dense.empty else ''}."
    return picture(figure, "training", "Training", caption)


def transfer(panel: Panel) -> Picture:
    """Means over tasks and seeds, grouped by sparsity: zero-shot above, after fine-tuning below."""
    tasks = [len(panel.records[run].tasks) for run in panel.runs["run"]]
    several = f"{min(tasks)} to {max(tasks)}" if min(tasks) < max(tasks) else f"{tasks[0]}"
    several += " task" if max(tasks) == 1 else " tasks"
    caption = f"Mean {panel.label} over {several} and over seeds ({seeds_said(panel.runs)}). "
    if panel.runs.groupby(["series", "sparsity"])["seed"].nunique().max() > 1:
        caption += "Bars are 95 % intervals over seeds by Student's t. "
    if not panel.dense.empty:
        caption += "Dashed: the dense network."
    return picture(figure(panel), "transfer", "Transfer to other tasks", caption.strip())


def figure(panel: Panel) -> Figure:
    """The figure by itself."""
    levels = sorted(panel.pruned["sparsity"].unique())
    drawn = Figure(figsize=(9.0, 5.6))
    for place, (column, label) in enumerate(_PARTS.items()):
        axes = drawn.add_subplot(2, 1, place + 1)
        _groups(panel, axes, column, levels)
        axes.set_title(label)
        axes.set_ylabel(f"{panel.label} (%)")
    drawn.axes[-1].set_xlabel("sparsity")
    drawn.subplots_adjust(hspace=0.32)
    legend(drawn.axes[0], above=1.16)
    return drawn


def _groups(panel: Panel, axes: Axes, column: str, levels: list[float]) -> None:
    names = panel.series(panel.pruned)
    width = min(0.84 / max(len(names), 1), 0.16)
    for number, name in enumerate(names):
        style, rows = panel.look[name], panel.pruned[panel.pruned["series"] == name]
        for group, level in enumerate(levels):
            values = [100 * value for value in by_seed(rows[rows["sparsity"] == level], column)]
            if not values:
                continue
            found, place = estimate(values), group + (number - (len(names) - 1) / 2) * width
            if found.n > 1:
                axes.vlines(place, found.low, found.high, color=style.colour, alpha=0.3, lw=4)
            face = style.colour if style.dash == "-" else "white"
            axes.plot(place, found.mean, style.marker, color=style.colour, ms=6, markerfacecolor=face, zorder=3)
        axes.plot([], [], style.marker, color=style.colour, label=name, markerfacecolor=face)
    for name in panel.series(panel.dense):
        mean = 100 * panel.dense.loc[panel.dense["series"] == name, column].mean()
        axes.axhline(mean, color=panel.look[name].colour, linestyle="--", lw=1.4, label=name)
    for border in range(1, len(levels)):
        axes.axvline(border - 0.5, color="#e3e6ea", lw=0.8)
    axes.set_xticks(range(len(levels)), [f"{level:.4g}" for level in levels])
    axes.set_xlim(-0.5, max(len(levels), 1) - 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    low, high = 100 * panel.runs[column].min(), 100 * panel.runs[column].max()
    margin = max(0.3 * (high - low), 1.0)
    axes.set_ylim(max(0.0, low - margin), min(100.5, high + margin))
    axes.grid(axis="x", visible=False)
