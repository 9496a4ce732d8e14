"""The forms of pictures: each takes tables with named columns and gives an Altair chart."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from pathex.errors import InvalidInput
from pathex.figures.style import GREY, INK, ROOM, THEME, Style, styles

WIDTH = 640
"""Pixels of a chart by itself; in a page it is as wide as its place."""

_MOST_MARKERS = 12
_MOST_COLUMNS = 10
_GAP = 0.075  # of the axis, that the label of the sparsest has for itself
UNIQUE = ("pathex_points", "pathex_picked")
"""Names that one figure may hold once."""

_PICK = alt.selection_point(name=UNIQUE[1], fields=["series"], bind="legend")
_CHANNELS = {"colour": ("color", alt.Color), "marker": ("shape", alt.Shape), "dash": ("strokeDash", alt.StrokeDash)}
_DRAWN = ["colour", "marker", "dash", "row"]
_TITLES = {"low": "interval from", "high": "to"}
Look = Mapping[str, Style]


def curves(
    means: pd.DataFrame,
    x: str,
    *,
    x_title: str,
    y_title: str,
    log: str = "",
    look: Look | None = None,
    runs: pd.DataFrame | None = None,
    levels: pd.DataFrame | None = None,
    behind: pd.DataFrame | None = None,
    frame: tuple[float, float] | None = None,
) -> alt.LayerChart:
    """Mean and interval of series against sparsity, size, rank or epoch; a click on the legend picks a series.

    Args:
        means: Columns ``series``, ``x``, ``mean``; with ``low`` and ``high`` a band is drawn. More columns are told
            when a point is pointed at, as in all tables.
        x: Name of the column. ``sparsity`` is drawn as the density on a log scale, labelled with the sparsity.
        x_title: What the axis says.
        y_title: What the axis says.
        log: The axes with a log scale: ``x``, ``y`` or ``xy``.
        look: Styles by the names of the legend, in its order; by default those of the series.
        runs: Single runs as dots, columns ``series``, ``x``, ``mean``.
        levels: Lines from left to right, columns ``series``, ``mean`` and perhaps ``low``, ``high``.
        behind: Curves behind, columns ``series``, ``x``, ``mean`` and their own ``colour``, ``marker``, ``dash``.
        frame: Limits of the vertical axis; intervals are cut there.

    Returns:
        The chart.

    Raises:
        InvalidInput: If a table lacks a column.
    """
    tables = [_checked(table, "series", x, "mean") for table in (means, runs, behind) if table is not None]
    look = look if look is not None else _own(means)
    places: dict[str, Any] = {"x": _x(pd.concat([table[x] for table in tables]), x, x_title, "x" in log)}
    axis = alt.Axis(tickCount=6, format="~g") if "y" in log else alt.Axis()
    y = alt.Y("mean:Q", title=y_title, scale=_scale("y" in log, frame), axis=axis)
    layers = _levels(levels, look, y) if levels is not None else []
    layers += _behind(behind, {**places, "y": y}) if behind is not None else []
    counts = means.groupby("series")["mean"].transform("count")
    if _has_intervals(means):
        ends = {**places, **_ends(y), **_channels(look, "colour")}
        layers.append(_chart(means[counts > 1]).mark_area(clip=True).encode(**ends, opacity=_shown(0.13)))
        single = _chart(means[counts == 1]).mark_rule(clip=True, strokeWidth=4)  # a band needs two points
        layers.append(single.encode(**ends, opacity=_shown(0.3)))
    places["y"] = y
    line = _chart(_dashed(means, look)).mark_line(clip=True, strokeWidth=2)
    layers.append(line.encode(**places, **_channels(look, "colour"), **_channels(None, "dash"), opacity=_shown(1)))
    if runs is not None:
        single = _chart(runs).mark_point(filled=True, size=14, clip=True)
        layers.append(single.encode(**places, **_channels(look, "colour"), opacity=_shown(0.5), tooltip=_tips(runs)))
    every = (counts / _MOST_MARKERS).apply(math.ceil)
    marked = means[means.groupby("series").cumcount() % every == 0]
    points = _chart(marked).mark_point(filled=True, size=60).properties(name=UNIQUE[0]).add_params(_PICK)
    styled = {**_channels(look, "colour", "marker"), "opacity": _shown(1)}
    return _finished([*layers, points.encode(**places, **styled, tooltip=_tips(marked))], 300)


def dots(
    means: pd.DataFrame,
    *,
    x_title: str,
    look: Look | None = None,
    runs: pd.DataFrame | None = None,
    levels: pd.DataFrame | None = None,
    behind: pd.DataFrame | None = None,
    frame: tuple[float, float] | None = None,
    number: str = ".1f",
) -> alt.LayerChart:
    """Mean and interval of series below each other, the first row on top, with the number.

    The arguments are those of `curves`; ``number`` is the format of what stands on the right. Without ``look`` there is
    no legend, since the rows bear the names. What stands in ``behind`` has a column ``row`` beside ``series``: the
    series that it is drawn with.

    Returns:
        The chart.

    Raises:
        InvalidInput: If a table lacks a column.
    """
    _checked(means, "series", "mean")
    names = means["series"].tolist()
    rows, other = (
        alt.Y(f"{at}:N", title=None, scale=alt.Scale(domain=names)).axis(grid=True) for at in ("series", "row")
    )
    x = alt.X("mean:Q", title=x_title, scale=_scale(False, frame)).axis(grid=True, tickCount=8)
    look = {**_own(means), **(look or {})}
    named = [name for name in look if name not in names]
    colour = _channels(look, "colour", named=named)
    layers = _levels(levels, look, x, named) if levels is not None else []
    if _has_intervals(means):
        bars = _chart(means).mark_rule(strokeWidth=7, opacity=0.3, clip=True)
        layers.append(bars.encode(**_ends(x), y=rows, **colour))
    if runs is not None:
        ticks = _chart(_checked(runs, "series", "mean")).mark_tick(thickness=1.5, size=12, clip=True)
        layers.append(ticks.encode(x=x, y=rows, **colour, tooltip=_tips(runs)))
    if behind is not None:
        hollow = _chart(_checked(behind, "series", "row", "mean")).mark_point(filled=False, size=70)
        styled = _channels(None, "colour", "marker")
        layers.append(hollow.encode(x=x, y=other, **styled, tooltip=_tips(behind)))
    text = _chart(means).mark_text(align="left", dx=6, fontSize=12, color=INK)
    layers.append(text.encode(x=alt.value("width"), y=rows, text=alt.Text("mean:Q", format=number)))
    points = _chart(means).mark_point(filled=True, size=80, opacity=1)
    styled = _channels(look, "colour", "marker", named=named)
    return _finished([*layers, points.encode(x=x, y=rows, **styled, tooltip=_tips(means))], 27 * len(names))


def heat_map(cells: pd.DataFrame, x: str, y: str, *, label: str, log: bool = False, step: int = 24) -> alt.LayerChart:
    """Numbers as colours, for instance the density of each layer of several masks.

    Args:
        cells: Columns ``x``, ``y`` and ``value``, in the order of rows and columns of the picture.
        x: Name of the column that lies across.
        y: Name of the column that lies down.
        label: What the colours are.
        log: Whether colours follow the logarithm; a zero is a cross then.
        step: Pixels of a row.

    Returns:
        The chart. Cells bear their number if there are at most ten columns.

    Raises:
        InvalidInput: If the table lacks a column or holds a negative value.
    """
    _checked(cells, x, y, "value")
    if (cells["value"] < 0).any():
        raise InvalidInput(f"a heat map shows values from 0 on, not {cells['value'].min()}")
    crossed = (cells["value"] == 0) & log
    some, top = cells[~crossed], max(1.0, cells["value"].max())
    low = some["value"].min() if log and len(some) else 0.0
    place = {
        "x": alt.X(**_field(x, "nominal"), sort=None, title=None).axis(labelAngle=-90, ticks=False, domain=False),
        "y": alt.Y(**_field(y, "nominal"), sort=None, title=None).axis(labelPadding=6),
    }
    scale = alt.Scale(scheme="viridis", reverse=True, type="log" if log else "linear", domain=[low, top])
    colour = alt.Color("value:Q", scale=scale, legend=alt.Legend(title=label, format="~g", gradientLength=200))
    cross = _chart(cells[crossed]).mark_point(shape="M-1,-1L1,1M-1,1L1,-1", stroke=INK, strokeWidth=2, size=50)
    layers = [
        _chart(some).mark_rect().encode(**place, color=colour, tooltip=_tips(cells)),
        cross.encode(**place, tooltip=_tips(cells)),
    ]
    if cells[x].nunique() <= _MOST_COLUMNS:
        middle = (low * top) ** 0.5 if log else top / 2
        ink = alt.condition(f"datum.value > {middle}", alt.value("white"), alt.value("black"))
        text = alt.Text("value:Q", format=".2~g")
        layers.append(_chart(some).mark_text(fontSize=11).encode(**place, text=text, color=ink))
    return _finished(layers, step * cells[y].nunique())


def matrix(cells: pd.DataFrame) -> alt.LayerChart:
    """The overlap (Jaccard index) of masks with each other: columns ``first``, ``second`` and ``value`` in [0, 1]."""
    return heat_map(cells, "first", "second", label="overlap (Jaccard index)", log=True, step=20)


def spectrum(values: pd.DataFrame, *, look: Look | None = None) -> alt.LayerChart:
    """Eigenvalues by rank on a log scale; it says how many cannot be drawn there because they are not above zero.

    Args:
        values: Columns ``series``, ``rank`` (from 1) and ``mean``, the eigenvalue, perhaps ``low``, ``high``.
        look: Styles by series.

    Returns:
        The chart.

    Raises:
        InvalidInput: If the table lacks a column or no value is above zero.
    """
    above = _checked(values, "series", "rank", "mean")["mean"] > 0
    if not above.any():
        raise InvalidInput("no eigenvalue is above zero: a log scale shows none")
    left = len(values) - int(above.sum())
    x_title = f"rank; {left} of {len(values)} values are not above zero and not drawn" if left else "rank"
    return curves(values[above], "rank", x_title=x_title, y_title="eigenvalue", log="y", look=look)


def flow(layers: pd.DataFrame, *, unit: str = "channels", look: Look | None = None) -> alt.LayerChart:
    """How wide each layer of a network remains, from input to output: a ribbon for each series in front of the whole.

    Args:
        layers: Columns ``series``, ``layer``, ``kept``, ``total``, in the order of the layers.
        unit: What is counted.
        look: Styles by series.

    Returns:
        The chart; the numbers of the narrowest layer stand above it.

    Raises:
        InvalidInput: If the table lacks a column or a total is not above zero.
    """
    frame = _checked(layers, "series", "layer", "kept", "total")
    if (frame["total"] <= 0).any():
        raise InvalidInput(f"layer {frame.loc[frame['total'] <= 0, 'layer'].iloc[0]!r} has a total that is not above 0")
    names, share = frame["series"].drop_duplicates().tolist(), frame["kept"] / frame["total"]
    row = -frame["series"].map({name: place for place, name in enumerate(names)})
    edges = {"low": row - 0.42 * share, "high": row + 0.42 * share, "bottom": row - 0.42, "top": row + 0.42}
    said = frame["kept"].map("{:.4g}".format) + " of " + frame["total"].map("{:.4g}".format)
    frame = frame.assign(**edges, said=said)
    axis = alt.Axis(values=[*range(0, -len(names), -1)], labelExpr=f"{json.dumps(names)}[-datum.value]", grid=False)
    scale = alt.Scale(domain=[0.5 - len(names), 0.5], nice=False)
    x = alt.X("layer:N", sort=None, title=None, axis=alt.Axis(labelAngle=-90), scale=alt.Scale(paddingInner=0))
    tips = [alt.Tooltip("series:N"), alt.Tooltip("layer:N"), alt.Tooltip("said:N", title=unit)]
    whole, kept = (
        {"x": x, "y": alt.Y(f"{low}:Q", title=None, axis=axis, scale=scale), "y2": f"{high}:Q", "tooltip": tips}
        for low, high in (("bottom", "top"), ("low", "high"))
    )
    colour = _channels(look if look is not None else _own(frame), "colour", named=())
    narrowest = _chart(frame.loc[share.groupby(frame["series"], sort=False).idxmin()])
    parts = [
        _chart(frame).mark_bar(color=GREY, opacity=0.2).encode(**whole),
        _chart(frame).mark_bar().encode(**kept, **colour),
        narrowest.mark_text(dy=-2, baseline="bottom", color=INK).encode(x=x, y=alt.Y("top:Q"), text="said:N"),
    ]
    return _finished(parts, 84 * len(names))


def _checked(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    missing = [name for name in columns if name not in table]
    if missing:
        raise InvalidInput(f"a figure needs columns {', '.join(columns)}; the table has no {', '.join(missing)}")
    return table


def _chart(table: pd.DataFrame) -> alt.Chart:
    """A chart of some rows, without the limit on their number that Altair has for tables."""
    rows = [{str(name): _number(value) for name, value in row.items()} for row in table.to_dict("records")]
    chart = alt.Chart(alt.InlineData(values=rows))
    return chart.transform_calculate(density="1 - datum.sparsity") if "sparsity" in table else chart


def _number(value: Any) -> Any:
    """The value, unless it is a number that JSON does not have."""
    return None if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)) else value


def _own(table: pd.DataFrame) -> dict[str, Style]:
    return styles((str(name).partition(" (")[0], str(name)) for name in table["series"])


def _x(values: "pd.Series[float]", name: str, title: str, log: bool) -> alt.X:
    """The horizontal axis; sparser is further right."""
    scale = alt.Scale(zero=False, nice=False, padding=8)
    axis = alt.Axis(format="d", tickMinStep=1) if (values % 1 == 0).all() else alt.Axis()
    if name == "sparsity":
        densities = sorted({round(1 - float(value), 12) for value in values})
        if densities and densities[0] <= 0:
            raise InvalidInput(f"sparsity is {values.max()}; allowed: numbers below 1, whose density a log scale shows")
        near = densities[0] * (densities[-1] / densities[0]) ** _GAP
        labelled = [density for density in densities if density == densities[0] or density >= near]
        scale = alt.Scale(type="log", domain=[densities[-1] * 1.12, densities[0] / 1.12], nice=False)
        axis = alt.Axis(values=labelled, labelExpr="format(1 - datum.value, '.4~g')")
        name = "density"
    elif log:
        scale = alt.Scale(type="log", domain=[float(values.min()) / 1.15, float(values.max()) * 1.15], nice=False)
        axis = alt.Axis(format="~s" if values.max() >= 1000 else "~g", tickCount=6)
    return alt.X(**_field(name), title=title, axis=axis, scale=scale)


def _field(name: str, kind: str = "quantitative") -> dict[str, Any]:
    """A column as what a channel shows; without backslashes a name such as ``a.b`` would be a path into values."""
    return {"field": re.sub(r"""([.\[\]\\"'])""", r"\\\1", name), "type": kind}


def _scale(log: bool, frame: tuple[float, float] | None) -> alt.Scale:
    limits: dict[str, Any] = {"domain": [*frame], "nice": False} if frame else {"zero": False}
    return alt.Scale(type="log" if log else "linear", **limits)


def _channels(look: Look | None, *which: str, named: Sequence[str] | None = None) -> dict[str, Any]:
    """Channels and a legend of some names, by default all; without a look, what stands in the table itself."""
    if look is None:
        return {_CHANNELS[name][0]: _CHANNELS[name][1](f"{name}:N", scale=None) for name in which}
    named = [*look] if named is None else [*named]
    columns = alt.expr(f"max(1, floor({ROOM} / {7 * max(map(len, named), default=0) + 40}))")
    legend, found = alt.Legend(title=None, values=named, columns=columns) if named else None, {}
    for name in which:
        channel, kind = _CHANNELS[name]
        values: list[str] = [getattr(style, name) for style in look.values()]
        found[channel] = kind("series:N", scale=alt.Scale(domain=[*look], range=values), legend=legend)
    return found


def _dashed(table: pd.DataFrame, look: Look) -> pd.DataFrame:
    """With the dashes as a column: a scale of dashes would dash the outlines of the legend's markers too."""
    return table.assign(dash=table["series"].map(lambda name: [*look[name].dash]))


def _shown(opacity: float) -> Any:
    """The opacity of what is picked by the legend, or of everything; the rest fades."""
    return alt.condition(_PICK, alt.value(opacity), alt.value(opacity / 8))


def _has_intervals(table: pd.DataFrame) -> bool:
    return {"low", "high"} <= {*table} and bool(table["low"].notna().any())


def _ends(along: Any) -> dict[str, Any]:
    """The channels of an interval; where there is none nothing is drawn."""
    channel = "x" if isinstance(along, alt.X) else "y"
    low = type(along)("low:Q", title=along["title"], scale=along["scale"])
    return {channel: low, f"{channel}2": "high:Q"}


def _levels(levels: pd.DataFrame, look: Look, along: Any, named: Sequence[str] | None = None) -> list[alt.Chart]:
    """Lines across the whole chart, with their intervals."""
    drawn = []
    if _has_intervals(_checked(levels, "series", "mean")):
        band = _chart(levels.dropna(subset=["low", "high"])).mark_rect(opacity=0.09, clip=True)
        drawn.append(band.encode(**_ends(along), **_channels(look, "colour", named=named)))
    line = _chart(_dashed(levels, look)).mark_rule(strokeWidth=1.4, clip=True)
    styled = _channels(look, "colour", named=named) | _channels(None, "dash")
    drawn.append(line.encode(**{"x" if isinstance(along, alt.X) else "y": along}, **styled, tooltip=_tips(levels)))
    return drawn


def _behind(table: pd.DataFrame, places: Mapping[str, Any]) -> list[alt.Chart]:
    line = _chart(table).mark_line(strokeWidth=1.1, opacity=0.8, clip=True)
    points = _chart(table).mark_point(filled=False, size=35, opacity=0.8, strokeWidth=1, clip=True)
    return [
        line.encode(**places, detail="series:N", **_channels(None, "colour", "dash")),
        points.encode(**places, **_channels(None, "colour", "marker"), tooltip=_tips(table)),
    ]


def _tips(table: pd.DataFrame) -> list[alt.Tooltip]:
    """What is told when a mark is pointed at: every column but those that say how it is drawn."""
    tips = []
    for name in table.columns.drop(_DRAWN, errors="ignore"):
        title = _TITLES.get(name, name.replace("_", " "))
        is_float = pd.api.types.is_float_dtype(table[name])
        kind, form = ("quantitative", ".4~g") if is_float else ("nominal", alt.Undefined)
        tips.append(alt.Tooltip(**_field(name, kind), format=form, title=title))
    return tips


def _finished(layers: Sequence[alt.Chart], height: int) -> alt.LayerChart:
    return alt.layer(*layers).properties(width=WIDTH, height=height).configure(**THEME)
