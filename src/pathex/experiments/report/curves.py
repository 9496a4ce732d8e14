"""The metric of one experiment against sparsity, parameters or multiply-adds, with published curves behind."""

import pandas as pd

from pathex.errors import InvalidInput
from pathex.experiments.report.panel import Panel, Picture, seeds_said
from pathex.experiments.report.published import ALIASES
from pathex.experiments.report.published import caption as published_caption
from pathex.experiments.report.tables import summary_table
from pathex.figures import DASHED, DOTTED, GREY, HOLLOW, INK, Style, curves, dots, level

X_AXES = ("sparsity", "parameters", "multiply-adds")
"""What the metric can be drawn against."""

SHOWN = ["series", "mean", "low", "high", "n"]
SPARSER = "sparsity (fraction of weights removed)  →  sparser"
_AXIS_LABELS = {
    "parameters": "parameters kept, biases and normalisation included",
    "multiply-adds": "multiply-adds of the sparse network for one image",
}
_SOURCES = (("diamond", DASHED), ("square", DOTTED))


def main_figure(panel: Panel) -> Picture:
    """The metric after training, in the form that the runs ask for."""
    title = f"{panel.label[0].upper()}{panel.label[1:]} after training"
    if panel.x != "sparsity":
        return against_size(panel, f"{title}, against {panel.x}")
    return (against_sparsity if panel.pruned["sparsity"].nunique() > 1 else at_one_sparsity)(panel, title)


def against_sparsity(panel: Panel, title: str = "") -> Picture:
    """Curves over the sparsities of the runs."""
    look, levels = _look(panel)
    chart = curves(
        percent(summary_table(panel.pruned))[["sparsity", *SHOWN]],
        "sparsity",
        x_title=SPARSER,
        y_title=f"{panel.label} (%)",
        look=look,
        runs=percent(panel.pruned)[["series", "sparsity", "mean", "seed", "run"]],
        levels=levels,
        behind=_behind(panel),
        frame=frame(panel),
    )
    caption = _caption(panel, "dot", "Bands")
    caption += "The axis is the density on a log scale, labelled with the sparsity. "
    return Picture(panel.metric, title, (caption + published_caption(panel.behind)).strip(), (chart,))


def against_size(panel: Panel, title: str = "") -> Picture:
    """Curves over the mean sizes of the networks."""
    column = panel.x.replace("-", "_")
    runs = panel.runs[panel.runs[column].notna()]
    if runs.empty:
        one = panel.runs["run"].iloc[0]
        raise InvalidInput(f"no run like {one!r} holds {column} in its result.json; use --x sparsity or run it again")
    chart = curves(
        percent(summary_table(runs)).sort_values(column)[[column, *SHOWN]],
        column,
        x_title=_AXIS_LABELS[panel.x],
        y_title=f"{panel.label} (%)",
        log="x",
        look={name: panel.look[name] for name in panel.series(runs)},
        runs=percent(runs)[["series", column, "mean", "seed", "run"]],
        frame=frame(panel),
    )
    caption = _caption(panel, "dot", "Bands and bars")
    caption += "A point stands at the mean size of its networks, on a log scale. "
    if len(runs) < len(panel.runs):
        caption += f"{len(panel.runs) - len(runs)} of {len(panel.runs)} runs hold no {panel.x} and are not drawn. "
    return Picture(panel.metric, title, caption.strip(), (chart,))


def at_one_sparsity(panel: Panel, title: str = "") -> Picture:
    """The series below each other, the best on top."""
    means = percent(summary_table(panel.pruned)).sort_values("mean", ascending=False)
    (look, levels), behind = _look(panel), _behind(panel)
    if behind is not None:
        of = means.assign(row=means["series"], method=[ALIASES.get(name, name) for name in means["method"]])
        behind = behind.assign(colour=INK, marker=behind.pop("source")).dropna(subset="mean")
        behind = behind.merge(of[["row", "method"]], on="method")
    chart = dots(
        means[SHOWN],
        x_title=f"{panel.label} (%) at sparsity {means['sparsity'].iloc[0]:.6g}",
        look=look,
        runs=percent(panel.pruned)[["series", "mean", "seed", "run"]] if means["low"].notna().any() else None,
        levels=levels,
        behind=behind,
        frame=frame(panel),
    )
    caption = (_caption(panel, "tick", "Bars") + published_caption(panel.behind)).strip()
    return Picture(panel.metric, title, caption, (chart,))


def percent(table: pd.DataFrame) -> pd.DataFrame:
    """A table of runs or a summary with per cent in the columns that figures have."""
    found = {"mean": "value" if "value" in table else "mean", "low": "ci95_low", "high": "ci95_high"}
    return table.assign(**{name: 100 * table[column] for name, column in found.items() if column in table})


def _caption(panel: Panel, one: str, interval: str) -> str:
    caption = f"Means over seeds ({seeds_said(panel.runs)}); every {one} is one run. "
    if panel.runs.groupby(["series", "sparsity"])["seed"].nunique().max() > 1:
        caption += f"{interval} are 95 % intervals of the mean by Student's t; wide ones are cut at the frame. "
    chance, low = 100 * panel.runs["chance"].mean(), frame(panel)[0]
    return caption + (f"Chance, {chance:.1f} %, lies below the frame. " if chance < low else "")


def _look(panel: Panel) -> tuple[dict[str, Style], pd.DataFrame | None]:
    """The legend, and the lines across the chart: dense networks, chance, published dense networks."""
    look, rows = {name: panel.look[name] for name in panel.series(panel.pruned)}, []
    for row in percent(summary_table(panel.dense))[SHOWN].to_dict("records") if not panel.dense.empty else []:
        rows.append({**row, "series": f"{row['series']} ({row['mean']:.1f})"})
        look[rows[-1]["series"]] = level(panel.look[row["series"]].colour, DASHED)
    if (chance := 100 * panel.runs["chance"].mean()) >= frame(panel)[0]:
        rows.append({"series": f"chance ({chance:.1f})", "mean": chance})
        look[rows[-1]["series"]] = level(GREY, DOTTED)
    for (source, published), (marker, dash) in zip(panel.behind.groupby("source", sort=False), _SOURCES, strict=False):
        if published.loc[published["method"] != "dense", "value"].notna().any():
            look[f"published: {source}"] = Style(GREY, HOLLOW[marker])
        for value in 100 * published.loc[published["method"] == "dense", "value"]:
            rows.append({"series": f"dense, {source} ({value:.1f})", "mean": value})
            look[rows[-1]["series"]] = level(GREY, dash)
    return look, pd.DataFrame(rows) if rows else None


def _behind(panel: Panel) -> pd.DataFrame | None:
    """The published curves, each drawn like the first series of its method, its own name before its aliases."""
    rows = panel.behind[panel.behind["method"] != "dense"].sort_values("sparsity")
    if rows.empty:
        return None
    methods = dict(zip(panel.runs["series"], panel.runs["method"], strict=True))
    styles, looks = dict(zip(rows["source"].unique(), _SOURCES, strict=False)), []
    for method in rows["method"]:
        own = [name for name in panel.series(panel.runs) if methods[name] == method]
        others = [name for name in panel.series(panel.runs) if ALIASES.get(methods[name]) == method]
        looks.append(panel.look[[*own, *others][0]])
    return pd.DataFrame(
        {
            "series": "published: " + rows["source"],
            "method": rows["method"],
            "sparsity": rows["sparsity"],
            "mean": 100 * rows["value"],
            "colour": [look.colour for look in looks],
            "marker": [look.marker for look in looks],
            "dash": [[*styles[source][1]] for source in rows["source"]],
            "source": [styles[source][0] for source in rows["source"]],
        }
    )


def frame(panel: Panel) -> tuple[float, float]:
    """Limits that show every run and published value, and of each interval no more than half of what they span."""
    values = 100 * pd.concat([panel.runs["value"], panel.behind["value"].dropna()])
    low, high = values.min(), values.max()
    margin = max(0.08 * (high - low), 0.5)
    room = max(0.5 * (high - low), 1.0)
    summary = summary_table(panel.runs)
    lowest = (100 * summary["ci95_low"]).fillna(low).clip(lower=low - room).min()
    highest = (100 * summary["ci95_high"]).fillna(high).clip(upper=high + room).max()
    return max(0.0, min(low, lowest) - margin), min(100.0, max(high, highest) + margin)
