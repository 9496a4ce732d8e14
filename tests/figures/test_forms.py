import json
import re
from html import escape

import numpy as np
import pandas as pd
import pytest

from drawn import channel, layers, legend, texts
from pathex.errors import UnknownName
from pathex.figures import (
    DASHED,
    GREY,
    HOLLOW,
    INK,
    Style,
    curves,
    dots,
    embedded,
    flow,
    heat_map,
    level,
    matrix,
    painted,
    save,
    spectrum,
    styles,
)
from refusals import refused

GRID = (0.36, 0.5904, 0.738, 0.8322, 0.893, 0.9312, 0.956, 0.9717, 0.982)
CLOSE = (0.5, 0.8, 0.89, 0.893, 0.8926, 0.9, 0.95, 0.956, 0.98, 0.9817, 0.982)


def means(levels=GRID, series=("px", "random")):
    rows = [{"series": name, "sparsity": level, "mean": 80 - level} for name in series for level in levels]
    return pd.DataFrame(rows).assign(low=lambda rows: rows["mean"] - 1, high=lambda rows: rows["mean"] + 1)


def drawn(table, **options):
    return curves(table, "sparsity", x_title="sparsity", y_title="accuracy", **options)


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return np.dot(linear, (0.2126, 0.7152, 0.0722))


def test_colours_read_on_white_and_on_dark_pages_and_no_two_series_look_alike():
    methods = (
        "dense",
        "px",
        "random",
        "magnitude",
        "synflow",
        "ntk-sap",
        "snip",
        "grasp",
        "imp",
        "small-dense",
        "rigl",
    )
    methods += ("set", "px-literal", "px-cvpr24", "synflow-l2", "iterative-snip", "force", "a", "b", "c", "d", "e", "f")
    found = styles([*((name, name) for name in methods), *(("px", f"px ({number})") for number in range(9))])
    assert len({(style.colour, style.marker) for style in found.values()}) == len(found)
    for name, style in found.items():
        if style.colour != INK:
            assert 1.05 / (luminance(style.colour) + 0.05) > 2, name
            assert (luminance(style.colour) + 0.05) / (luminance("#1c2026") + 0.05) > 3, name


@pytest.mark.parametrize(
    ("levels", "shown"), [(GRID, GRID), (CLOSE, (0.5, 0.8, 0.89, 0.95, 0.982)), ((0.0, 0.99), (0.0, 0.99))]
)
def test_labels_of_the_sparsity_axis_do_not_run_into_each_other(levels, shown):
    _, svg = painted(drawn(means(levels)))
    labels = texts(svg, "axis-label")[: len(shown)]
    assert [text for text, _ in labels] == [f"{level:g}" for level in shown]
    half = [3.4 * len(text) for text, _ in labels]  # a digit is 6.7 wide
    places = [place for _, place in labels]
    assert all(a + u + 2 < b - v for a, b, u, v in zip(places, places[1:], half, half[1:], strict=False))


def test_a_series_of_one_point_has_a_bar_for_a_band_and_missing_intervals_are_not_drawn():
    table = pd.concat([means(), means((0.9,), ("snip",)), means((0.5,), ("grasp",)).assign(low=None, high=None)])
    chart = drawn(table)
    band, bar = layers(chart, "area")[0], layers(chart, "rule")[0]
    assert {row["series"] for row in band.rows} == {"px", "random"}
    assert {row["series"]: row["low"] for row in bar.rows} == {"snip": pytest.approx(78.1), "grasp": None}
    _, svg = painted(chart)
    [group] = [group for group in svg.split(b"<g ") if b"mark-rule role-mark" in group]
    assert group.count(b"<line") == 1


def test_long_curves_have_some_markers_and_short_ones_all():
    table = pd.DataFrame([{"series": "px", "epoch": epoch, "mean": 1 / epoch} for epoch in range(1, 101)])
    points = layers(curves(table, "epoch", x_title="epoch", y_title="loss"), "point")[-1].rows
    assert [row["epoch"] for row in points] == list(range(1, 101, 9))
    assert len(layers(drawn(means()), "point")[-1].rows) == 18


def test_what_stands_behind_is_behind_and_what_is_picked_by_the_legend_stays():
    table = means()
    look = styles((name, name) for name in table["series"])
    look |= {"dense (90.0)": level(INK, DASHED), "published: a paper": Style(GREY, HOLLOW["diamond"])}
    behind = table[["sparsity", "mean"]].assign(series="published: a paper", colour="#0072B2", marker="circle")
    behind["dash"] = [[5, 3]] * len(behind)
    lines = pd.DataFrame([{"series": "dense (90.0)", "mean": 90.0}])
    runs = table[["series", "sparsity", "mean"]].assign(run="<b>one</b>")
    chart = drawn(table, look=look, behind=behind, levels=lines, runs=runs, frame=(60.0, 95.0))
    assert legend(chart) == [*look]
    assert [layer.mark for layer in layers(chart)] == [
        "rule",
        "line",
        "point",
        "area",
        "rule",
        "line",
        "point",
        "point",
    ]
    assert channel(chart, "y")["scale"]["domain"] == [60, 95]
    [picked] = chart.to_dict()["params"]
    assert (picked["bind"], picked["select"]["fields"]) == ("legend", ["series"])
    conditions = [layer.channels["opacity"]["condition"]["param"] for layer in layers(chart)[3:]]
    assert conditions == [picked["name"]] * 5
    tips = [tip["field"] for tip in layers(chart)[6].channels["tooltip"]]
    assert tips == ["series", "sparsity", "mean", "run"]
    page = embedded(chart, "a </script> chart")
    assert "<" not in page and json.loads(page)["description"] == "a </script> chart"
    assert json.loads(page)["width"] == "container" and "http" not in page


def test_rows_below_each_other_bear_names_and_numbers():
    table = means((0.9,), ("b", "a", "c"))
    table["mean"] = [3.0, 2.0, 1.25]
    chart = dots(table.drop(columns=["low", "high"]), x_title="milliseconds", number=".2f")
    assert "legend" not in channel(chart, "color") or channel(chart, "color")["legend"] is None
    _, svg = painted(chart)
    assert [text for text, _ in texts(svg, "axis-label") if text.isalpha()] == ["b", "a", "c"]
    assert [text for text, _ in texts(svg, "mark")] == ["3.00", "2.00", "1.25"]


@pytest.mark.parametrize("log", [True, False])
def test_a_heat_map_crosses_out_zeros_that_its_colours_cannot_show(log):
    cells = pd.DataFrame(
        [{"layer": layer, "series": name, "value": v} for layer, name, v in (("z", "px", 0.5), ("a", "px", 0.0))]
    )
    chart = heat_map(cells, "layer", "series", label="density", log=log)
    some, none = layers(chart, "rect")[0].rows, layers(chart, "point")[0].rows
    assert (len(some), len(none)) == ((1, 1) if log else (2, 0))
    assert channel(chart, "color")["scale"]["domain"] == ([0.5, 1] if log else [0, 1])
    _, svg = painted(chart)
    assert [text for text, _ in texts(svg, "axis-label")][:2] == ["z", "a"]  # in the order of the rows
    with refused("from 0 on, not -1"):
        heat_map(cells.assign(value=-1), "layer", "series", label="density")


def test_every_pair_of_a_matrix_is_a_cell_with_its_number():
    names = ("px, seed 0", "px, seed 1")
    cells = [{"first": a, "second": b, "value": 1.0 if a == b else 0.25} for a in names for b in names]
    _, svg = painted(matrix(pd.DataFrame(cells)))
    assert sorted(text for text, _ in texts(svg, "mark")) == ["0.25", "0.25", "1", "1"]


def test_a_spectrum_says_what_a_log_scale_leaves_out():
    values = pd.DataFrame({"series": "dense", "rank": range(1, 6), "mean": [100.0, 1e-9, 0.5, 0.0, -1e-8]})
    chart = spectrum(values)
    assert channel(chart, "x")["title"] == "rank; 2 of 5 values are not above zero and not drawn"
    assert channel(chart, "y")["scale"]["type"] == "log"
    assert [row["mean"] for row in layers(chart, "line")[0].rows] == [100, 1e-9, 0.5]
    with refused("no eigenvalue is above zero"):
        spectrum(values.assign(mean=0.0))


def test_a_flow_is_as_wide_as_what_is_kept_and_bears_the_numbers_of_its_narrowest_layer():
    rows = [("px", "a", 4, 8), ("px", "b", 2, 16), ("px", "c", 8, 8), ("snip", "a", 1, 8), ("snip", "b", 16, 16)]
    table = pd.DataFrame(rows, columns=["series", "layer", "kept", "total"])
    chart = flow(table)
    whole, kept = layers(chart, "bar")
    widths = [row["high"] - row["low"] for row in kept.rows]
    full = [row["top"] - row["bottom"] for row in whole.rows]
    assert np.divide(widths, full).tolist() == pytest.approx([0.5, 0.125, 1, 0.125, 1])
    assert kept.rows[0]["low"] > kept.rows[3]["high"]  # a row each, the first on top
    narrowest = layers(chart, "text")[0].rows
    assert [(row["series"], row["layer"], row["said"]) for row in narrowest] == [
        ("px", "b", "2 of 16"),
        ("snip", "a", "1 of 8"),
    ]
    with refused("layer 'a' has a total that is not above 0"):
        flow(table.assign(total=0))


def test_files_are_the_same_each_time_in_any_order_and_black_on_white(tmp_path):
    one, other = drawn(means()), matrix(pd.DataFrame([{"first": "a", "second": "a", "value": 1.0}]))
    first = painted(one, one, across=True)
    painted(other)
    assert painted(one, one, across=True) == first
    assert first[0].startswith(b"\x89PNG") and b'fill="white"' in first[1]
    save(tmp_path / "a.png", one, one, across=True)
    assert (tmp_path / "a.png").read_bytes() == first[0]
    assert painted(one, one) != first
    with refused("unknown ending of a figure '.pdf'", UnknownName):
        save(tmp_path / "a.pdf", one)
    with refused("cannot write the figure .*b.svg"):
        save(tmp_path / "nowhere" / "b.svg", one)


def test_what_is_no_number_is_a_gap():
    losses = [2.0, float("nan"), float("inf"), 1.0]
    table = pd.DataFrame({"series": "px", "epoch": [0.5, 1.0, 1.5, 2.0], "mean": losses})
    chart = curves(table, "epoch", x_title="epoch", y_title="loss")
    page = json.loads(embedded(chart, ""), parse_constant=pytest.fail)
    assert {2.0, None, 1.0} == {row["mean"] for rows in page["datasets"].values() for row in rows}
    _, svg = painted(chart)
    assert [text for text, _ in texts(svg, "axis-label")][:2] == ["0.5", "0.6"]


def shown(svg):
    """The places of the marks and what is told of them."""
    return re.findall(rb'transform="translate\(([^)]*)', svg), re.findall(rb'aria-label="([^"]*)"', svg)


@pytest.mark.parametrize("name", ["a.levels", "w[0]", "kept:all", "kept:Q", "it's", "count()"])
def test_a_column_of_any_name_is_drawn_and_told(name):
    """As in results.csv: ``method_options.levels``."""
    table = pd.DataFrame({"series": "px", "plain": [1, 2, 5], "mean": [1.0, 2.0, 3.0]})
    charts = [curves(table.rename(columns={"plain": x}), x, x_title="x", y_title="y") for x in ("plain", name)]
    (places, told), (same, found) = (shown(painted(chart)[1]) for chart in charts)
    assert same == places and len(set(places)) > 5
    title = escape(name).replace("&#x27;", "'").encode()
    assert found == [text.replace(b"plain", title) for text in told]
    cells = pd.DataFrame({"series": ["px", "snip"], name: ["u", "v"], "value": [0.5, 0.25]})
    for x, y in ((name, "series"), ("series", name)):
        labels = [text for text, _ in texts(painted(heat_map(cells, x, y, label="density"))[1], "axis-label")]
        assert {"u", "v", "px", "snip"} <= {*labels}


@pytest.mark.parametrize("sparsity", [1.0, 1.5])
def test_a_sparsity_that_leaves_nothing_is_refused(sparsity):
    with refused(f"sparsity is {sparsity}; allowed: numbers below 1"):
        drawn(means((0.9, sparsity)))
    drawn(means((0.9, 0.9999999)))


def test_a_missing_column_is_named():
    with refused("a figure needs columns series, sparsity, mean; the table has no mean"):
        drawn(means().drop(columns="mean"))
