"""The milliseconds of a network as bars."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from pathex.experiments.report import SETTINGS

_COLOURS = ("#8a8f98", "#0072B2")  # what computes every weight, and what the mask leaves


def draw(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws the rows of `latency`, a panel for each batch and number of threads, as PNG or SVG by the ending."""
    rows = [row for row in rows if "milliseconds" in row]
    cases = list(dict.fromkeys((row["batch_size"], row["threads"]) for row in rows))
    with mpl.rc_context(fname=SETTINGS):
        figure = Figure(figsize=(4.6 * len(cases), 0.45 * len({row["engine"] for row in rows}) + 1.4), layout="tight")
        for place, (batch, threads) in enumerate(cases):
            axes = figure.add_subplot(1, len(cases), place + 1)
            own = [row for row in rows if (row["batch_size"], row["threads"]) == (batch, threads)]
            for y, row in enumerate(reversed(own)):
                colour = _COLOURS[row["engine"] in {"compact", "sparse"}]
                middle = row["milliseconds"]
                axes.barh(y, middle, 0.65, color=colour)
                axes.errorbar(middle, y, xerr=[[middle - row["low"]], [row["high"] - middle]], color="black", capsize=2)
                axes.text(row["high"], y, f"  {middle:.3g} ms", va="center", fontsize=8)
            axes.set_yticks(range(len(own)), [row["engine"] for row in reversed(own)])
            axes.set_xlim(0, 1.25 * max(row["high"] for row in own))
            axes.set_xlabel("milliseconds a batch")
            axes.set_title(f"{batch} image{'s' * (batch > 1)}, {threads} thread{'s' * (threads > 1)}", fontsize=9)
        figure.suptitle(title)
        figure.savefig(path)
