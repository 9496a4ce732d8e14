"""The plot of the suite ``scale``."""

from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from pathex.bench._figures import INK, save, styled

__all__ = ["plot"]

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_MARKERS = ("o", "s", "D", "^", "v", "P")
# What grows, x, y, exponent, title: two rows of three panels.
_PANELS = (
    ("parameters", "parameters", "round_seconds", "time_exponent", "seconds a round"),
    ("parameters", "multiply_adds", "round_seconds", "work_exponent", "seconds a round"),
    ("images", "images", "round_seconds", "time_exponent", "seconds a round"),
    ("parameters", "parameters", "tensor_mib", "memory_exponent", "peak of live tensors (MiB)"),
    ("images", "images", "tensor_mib", "memory_exponent", "peak of live tensors (MiB)"),
    ("rounds", "rounds", "seconds", "time_exponent", "seconds of all rounds"),
)
_AXES = MappingProxyType({"multiply_adds": "multiply-adds of one forward pass of all images"})


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Log-log: time and memory against parameters, work, images and rounds, each series with its exponent.

    Args:
        frame: The rows.
        path: The files without their suffix.
    """
    cases, exponents = frame[frame["kind"] == "case"], frame[frame["kind"] != "case"]
    with styled():
        figure = Figure(figsize=(13, 7.4))
        for axes, (against, x, y, name, title) in zip(figure.subplots(2, 3).flat, _PANELS, strict=True):
            rows = cases[cases["against"] == against]
            axes.set_title(title)
            axes.set_xlabel(_AXES.get(x, x))
            if rows.empty:
                axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=INK)
                continue
            slopes = exponents[exponents["against"] == against].set_index("series")
            for number, (series, part) in enumerate(rows.groupby("series", sort=False)):
                slope = slopes[name].get(series) if name in slopes else None
                _series(
                    axes,
                    part.sort_values(x),
                    x,
                    y,
                    f"{series}{'' if slope is None else f', exponent {slope:.2f}'}",
                    number,
                )
            _finish(axes, rows, x, y)
        figure.subplots_adjust(wspace=0.22, hspace=0.38)
        save(figure, path)


def _series(axes: Axes, part: pd.DataFrame, x: str, y: str, label: str, number: int) -> None:
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    axes.plot(part[x], part[y], color=colour, marker=marker, ms=5.5, lw=1.6, label=label)


def _finish(axes: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """Logarithmic axes, a line of slope 1 for the eye, and the budget."""
    low, high = rows[x].min(), rows[x].max()
    if high > low:
        # Through the middle of the points.
        factor = np.exp(np.median(np.log(rows[y] / rows[x])))
        axes.plot([low, high], [factor * low, factor * high], ":", color=INK, lw=1.2, label="linear")
    if y == "tensor_mib":
        axes.axhline(rows["budget_mib"].iloc[0], color="#D55E00", lw=1, ls="--", label="budget")
    axes.set_xscale("log")
    axes.set_yscale("log")
    if high < 1000:
        ticks = sorted(rows[x].unique())
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    else:
        _ticks(axes.xaxis)
    axes.xaxis.set_minor_locator(NullLocator())
    _ticks(axes.yaxis)
    # Room for the legend above all points.
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * (top / bottom) ** (0.12 * len(axes.get_legend_handles_labels()[0])))
    axes.legend(fontsize=8, handlelength=1.8, loc="upper left", frameon=False)


def _ticks(axis: Axis) -> None:
    """Numbers that can be read, in place of powers of ten."""
    bottom, top = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if top < 60 * bottom else (1,), numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(EngFormatter(sep="") if top >= 1e5 else "{x:g}")
