"""Transfer: what a network pruned on one task reaches on the others, before and after fine-tuning."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pathex.experiments.report.panel import Panel, Picture, legend, picture, seeds_said
from pathex.experiments.report.statistics import estimate
from pathex.experiments.report.tables import by_seed

_PARTS = {"zero_shot": "zero-shot", "fine_tuned": "after fine-tuning"}


def transfer(panel: Panel) -> Picture:
    """Means over tasks and seeds, grouped by sparsity: zero-shot above, after fine-tuning below."""
    tasks = [len(panel.records[run].tasks) for run in panel.runs["run"]]
    several = f"{min(tasks)} to {max(tasks)} tasks" if min(tasks) < max(tasks) else f"{tasks[0]} tasks"
    caption = (
        f"Mean {panel.label} over {several.replace('1 tasks', '1 task')} and over seeds ({seeds_said(panel.runs)}). "
    )
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
