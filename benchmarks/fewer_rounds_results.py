"""Means over seeds and pictures of the rows that `fewer_rounds.py` writes."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["NOISE", "REFERENCE", "TRAINING", "draw", "summary"]

REFERENCE = "rounds=100"
NOISE = ("set=1", "dtype=float64")
TRAINING = ["epochs", "batch_size", "lr"]
_GROUP = ["model", "data", "train_images", "method", "sparsity"]
_INK, _COLOURS = "#333333", ("#2a6f97", "#c1666b", "#6a994e", "#bc8034", "#7b5ea7", "#3d8b8b")


def summary(pruned: pd.DataFrame, trained: pd.DataFrame | None) -> pd.DataFrame:
    """Means over seeds.

    Args:
        pruned: Rows of the prunings.
        trained: Rows of the trainings; None if there are none.

    Returns:
        One row for each network, sparsity and case (and training): rounds, seconds, how many times faster than the
        reference, share of the same weights, accuracy, and its difference to the reference in pairs of one seed, with
        its standard error and the number of pairs. Differences of one pair have no standard error.
    """
    paired = _paired(pruned, "seconds", _GROUP)
    paired["faster"] = paired["seconds_reference"] / paired["seconds"]
    result = paired.groupby([*_GROUP, "case"], sort=False)[
        ["rounds", "seconds", "faster", "same", "disconnected", "dead_layers"]
    ].mean()
    if trained is not None:
        pairs = _paired(trained, "accuracy", [*_GROUP, *TRAINING])
        pairs["difference"] = pairs["accuracy"] - pairs["accuracy_reference"]
        groups = pairs.groupby([*_GROUP, "case", *TRAINING], sort=False)
        differences = groups["difference"]
        table = pd.DataFrame(
            {
                "accuracy": groups["accuracy"].mean(),
                "difference": differences.mean(),
                "standard_error": differences.sem(),
                "seeds": differences.count(),
            }
        )
        result = result.reset_index().merge(table.reset_index(), how="left", on=[*_GROUP, "case"])
    return result.reset_index(drop=trained is not None).round(5)


def _paired(frame: pd.DataFrame, column: str, group: Sequence[str]) -> pd.DataFrame:
    """Rows with the value of the reference of the same seed beside them."""
    reference = frame.loc[frame["case"] == REFERENCE, [*group, "seed", column]]
    return frame.merge(reference, on=[*group, "seed"], suffixes=("", "_reference"))


def draw(table: pd.DataFrame) -> Figure:
    """How much faster, how many of the same weights, and differences in accuracy where networks were trained.

    Args:
        table: What `summary` returned.

    Returns:
        The figure: cases one below the other, networks and sparsities in colours. The dotted line of a colour is what
        another pruning set keeps in common with the reference.
    """
    frames = {
        "times faster than 100 rounds": (table.drop_duplicates([*_GROUP, "case"]), "faster"),
        "share of the same weights": (table.drop_duplicates([*_GROUP, "case"]), "same"),
    }
    if "difference" in table and table["difference"].notna().any():
        trained = table.dropna(subset=["difference"]).copy()
        trained[["difference", "standard_error"]] *= 100
        frames["points of accuracy, standard error"] = (trained, "difference")
    cases = [case for case in dict.fromkeys(table["case"]) if case != REFERENCE]
    names = dict.fromkeys(_name(row) for _, row in table.iterrows())
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    figure = Figure(figsize=(3.5 * len(frames) + 1.5, 1.5 + 0.35 * len(cases)), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (title, (frame, column)) in zip(
        figure.subplots(1, len(frames), sharey=True), frames.items(), strict=True
    ):
        _dots(panel, frame[frame["case"] != REFERENCE], cases, column, colours)
        panel.set_title(title, fontsize=8, loc="left", color=_INK)
        panel.axvline({"faster": 1, "same": 1, "difference": 0}[column], color=_INK, linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, colors=_INK)
    panel.set_yticks(range(len(cases)), cases)
    panel.invert_yaxis()
    figure.axes[0].legend(fontsize=6, frameon=False, loc="best")
    return figure


def _dots(axes: Axes, table: pd.DataFrame, cases: Sequence[str], column: str, colours: Mapping[str, str]) -> None:
    keys = [name for name in (*_GROUP, *TRAINING) if name in table and (column == "difference" or name in _GROUP)]
    groups = list(table.groupby(keys, sort=False))
    for number, (_, rows) in enumerate(groups):
        colour = colours[name := _name(rows.iloc[0])]
        places = [cases.index(case) + 0.6 * ((number + 0.5) / len(groups) - 0.5) for case in rows["case"]]
        errors = rows["standard_error"] if column == "difference" else None
        axes.errorbar(rows[column], places, xerr=errors, fmt="o", markersize=4, color=colour, label=name)
        for value in rows.loc[rows["case"] == NOISE[0], "same"] if column == "same" else ():
            axes.axvline(value, color=colour, linewidth=0.8, linestyle=":")


def _name(row: "pd.Series[Any]") -> str:
    return "{}, {}, {:g}".format(*row[["model", "data", "sparsity"]])
