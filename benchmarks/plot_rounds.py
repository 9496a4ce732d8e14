"""Bars of time and memory from the rows that `rounds.py` wrote.

python benchmarks/plot_rounds.py benchmarks/rows/rounds-resnet20-cpu.csv       # writes the same name with .png
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_METHOD, _PLAIN, _INK = "#2a6f97", "#a3a3a3", "#333333"


def draw(frame: pd.DataFrame, about: dict[str, Any]) -> Figure:
    """One bar per case: seconds of all rounds and peak memory; the plain implementation in grey.

    Args:
        frame: Rows of `rounds.py`.
        about: The environment that was written beside them.

    Returns:
        The figure.
    """
    settings, environment = about["settings"], about["environment"]
    device = about["cpu"] if environment["device"] == "cpu" else environment["device"]
    figure = Figure(figsize=(10, 1.6 + 0.34 * len(frame)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _bars(left, frame, "seconds", f"seconds of {settings['rounds']} rounds")
    _bars(right, frame, "tensor_mib", "peak of tensors above the start (MiB)")
    left.invert_yaxis()
    figure.suptitle(
        f"{settings['model']}, {settings['images']} images, {device}, threads: {settings['threads']}, "
        f"PyTorch {environment['torch']}",
        fontsize=10,
        color=_INK,
    )
    return figure


def _bars(axes: Axes, frame: pd.DataFrame, column: str, title: str) -> None:
    colours = [_PLAIN if method == "plain" else _METHOD for method in frame["method"]]
    bars = axes.barh(frame["method"], frame[column], color=colours, height=0.7)
    axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8, color=_INK)
    axes.set_title(title, fontsize=9, loc="left", color=_INK)
    axes.margins(x=0.12)
    axes.tick_params(length=0, labelsize=9, colors=_INK)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a file of rows.

    Args:
        argv: Arguments; None is those of the command line.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", type=Path, help="csv file of rounds.py, with its json file beside it")
    parser.add_argument("--out", type=Path, help="default: the same name with .png")
    given = parser.parse_args(argv)
    about = given.rows.with_suffix(".json")
    for path in (given.rows, about):
        if not path.is_file():
            parser.error(f"no file {path}")
    out = given.out or given.rows.with_suffix(".png")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    figure = draw(pd.read_csv(given.rows), json.loads(about.read_text(encoding="utf-8")))
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(out)
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
