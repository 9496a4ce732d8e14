"""The plot of the suite ``input``."""

from pathlib import Path
from types import MappingProxyType

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pathex.bench._figures import save, styled

__all__ = ["plot"]

_COLOURS = MappingProxyType({"decoding": "#8a8f98", "feed": "#0072B2", "loader": "#E69F00"})
_NAMES = MappingProxyType({"decoding": "bare decoding", "feed": "pathex", "loader": "plain DataLoader"})


def plot(frame: pd.DataFrame, path: Path) -> None:
    """One bar for each case, with its rate: from files on the left, from memory on the right.

    Args:
        frame: The rows.
        path: The files without their suffix.
    """
    with styled():
        figure = Figure(figsize=(13, 1.4 + 0.36 * max(frame.groupby("source").size())))
        for axes, (source, rows) in zip(figure.subplots(1, 2), frame.groupby("source", sort=False), strict=False):
            axes.set_title(f"images per second from {source} (median, quartiles)")
            _bars(axes, rows)
        figure.subplots_adjust(wspace=0.85)
        save(figure, path)


def _bars(axes: Axes, rows: pd.DataFrame) -> None:
    rates = rows["images_per_second"]
    errors = [(rates - rows["low"]).tolist(), (rows["high"] - rates).tolist()]
    colours = [_COLOURS[case] for case in rows["case"]]
    places = range(len(rows))
    axes.barh(places, rates, color=colours, height=0.7, xerr=errors, error_kw={"elinewidth": 1})
    axes.set_yticks(places, [_label(*row) for row in zip(rows["case"], rows["augment"], rows["workers"], strict=True)])
    for place, rate, high in zip(places, rates, rows["high"], strict=True):
        axes.annotate(f"{rate:,.0f}", (high, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, 1.25 * rows["high"].max())
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[["bottom"]].set_visible(False)
    axes.invert_yaxis()


def _label(case: str, augment: str, workers: float | None) -> str:
    own = "" if case == "decoding" else f", {augment}"
    threads = "" if workers is None or pd.isna(workers) else f", {workers:.0f} workers"
    return f"{_NAMES[case]}{own}{threads}"
