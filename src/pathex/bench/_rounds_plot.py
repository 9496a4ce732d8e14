"""The plot of the suite ``rounds``."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pathex.bench._figures import INK, save, styled

__all__ = ["plot"]

_METHOD, _PLAIN = "#0072B2", "#8a8f98"


def plot(frame: pd.DataFrame, path: Path) -> None:
    """One bar for each case: a round, the whole call, peak memory; the plain implementation in grey.

    Args:
        frame: The rows.
        path: The files without their suffix.
    """
    rows = frame.dropna(subset=["round_seconds"])
    rows = rows.reindex(columns=[*rows.columns, *({"seconds", "tensor_mib", "speed_up", "prune_speed_up"} - {*rows})])
    with styled():
        figure = Figure(figsize=(11, 1.5 + 0.32 * len(rows)))
        first, second, third = figure.subplots(1, 3, sharey=True)
        errors = np.abs(rows[["round_low", "round_high"]].to_numpy().T - rows["round_seconds"].to_numpy())
        _bars(first, rows, "round_seconds", _times(rows, "speed_up"), errors)
        _bars(second, rows, "seconds", _times(rows, "prune_speed_up"))
        _bars(third, rows, "tensor_mib", [""] * len(rows))
        for axes, title in zip(
            (first, second, third),
            ("seconds a round", "seconds in all", "peak of live tensors (MiB)"),
            strict=True,
        ):
            axes.set_title(title)
        first.invert_yaxis()
        figure.subplots_adjust(wspace=0.12)
        figure.text(first.get_position().x0, 0.0, _about(rows), fontsize=8.5, color=INK, va="top")
        save(figure, path)


def _bars(axes: Axes, rows: pd.DataFrame, column: str, notes: list[str], errors: np.ndarray | None = None) -> None:
    colours = [_PLAIN if method == "plain" else _METHOD for method in rows["method"]]
    values = rows[column].to_numpy(float)
    axes.barh(
        rows["method"], values, color=colours, height=0.68, xerr=errors, error_kw={"ecolor": INK, "elinewidth": 1}
    )
    ends = values if errors is None else values + errors[1]
    for place, (value, end, note) in enumerate(zip(values, ends, notes, strict=True)):
        if np.isfinite(value):
            axes.annotate(
                f"{value:.3g}{note}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8
            )
    # Room for the numbers beside the longest bar.
    axes.set_xlim(0, 1.42 * np.nanmax(ends, initial=1e-9))
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[["bottom"]].set_visible(False)


def _times(rows: pd.DataFrame, column: str) -> list[str]:
    """How many times as fast as the plain implementation each case is, where that is known."""
    factors = rows[column].where(rows["method"] != "plain")
    return ["" if pd.isna(factor) else f" ({factor:.3g}x)" for factor in factors]


def _about(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    threads = f", {row['threads']} thread{'' if row['threads'] == 1 else 's'}" if "threads" in rows else ""
    device = row.get("device", "")
    return (
        f"{row['model']}, {row['images']} images of {row['image_size']} px, {device}{threads}. "
        "Median and quartiles of the rounds; in brackets: times as fast as plain."
    )
