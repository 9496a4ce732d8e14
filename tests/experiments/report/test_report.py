import re
import shutil
from itertools import pairwise, product
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

from experiments.report.conftest import GRID
from pathex.cli import main
from pathex.experiments.report import build
from pathex.experiments.report.curves import _against_size, _against_sparsity, _dots, _frame, curves
from pathex.experiments.report.figures import _dead_layers_figure, draw, figure
from pathex.experiments.report.panel import SETTINGS, Panel, styles
from pathex.experiments.report.published import published_for
from pathex.experiments.report.records import read_all
from pathex.experiments.report.tables import runs_table
from pathex.masks import Mask
from refusals import refused


def test_a_report_is_tables_figures_and_a_page_that_needs_nothing_beside_it(study, tmp_path):
    before = dict(mpl.rcParams)
    report = build([study], tmp_path / "deep" / "report")
    assert dict(mpl.rcParams) == before
    assert (report.runs, report.left_out) == (27, ())
    figures = {f"{name}.{kind}" for name in ("accuracy", "training") for kind in ("png", "svg")}
    others = {"index.html", "table.csv", "summary.csv", "summary.md", "settings.yaml"}
    assert {path.name for path in report.figures} == figures
    assert {path.name for path in report.page.parent.iterdir()} == figures | others
    table = pd.read_csv(report.table)
    assert len(table) == 27 and table.loc[table["method"] == "dense", "density"].eq(1).all()
    assert len(pd.read_csv(report.summary)) == 9
    for path in report.figures:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG") or ElementTree.fromstring(content).tag.endswith("svg")
        assert b"<dc:date>" not in content
    text = report.page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "http" not in text and "<script" not in text
    assert text.count("data:image/svg+xml;base64,") == 2
    assert "prefers-color-scheme: dark" in text and "@media print" in text and 'name="viewport"' in text
    build([study], tmp_path / "again")
    for path in report.page.parent.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_each_model_and_data_set_has_its_own_figures(make_run, unpainted, tmp_path):
    report = build([make_run("px"), make_run("px", model="timm:resnet18")], tmp_path)
    names = {path.stem for path in report.figures if path.stem.startswith("accuracy")}
    assert names == {"accuracy_resnet20-fashion-mini", "accuracy_timm-resnet18-fashion-mini"}
    folders = [make_run(method, data=f"npz:/{method}/mine.npz") for method in ("px", "snip")]  # of one short name
    report = build(folders, tmp_path)
    assert len({path for path in report.figures if path.name.startswith("accuracy")}) == 4
    assert all(path.exists() for path in report.figures)


def test_masks_and_dead_layers_have_figures_of_their_own(make_run, unpainted, tmp_path):
    for method, kept in (("px", 1), ("magnitude", 0)):
        folder = make_run(method, 0.9, dead_layers=1 - kept)
        layer = torch.zeros(4, 3, dtype=torch.bool)
        layer[:kept] = True
        Mask({"a.weight": layer, "b.weight": ~layer}).save(folder / "mask.safetensors")
    report = build([folder.parent], tmp_path)
    assert {path.stem for path in report.figures} == {"accuracy", "layers", "dead_layers", "training"}
    assert "A cross at the foot" in report.page.read_text() and "Chance" not in report.page.read_text()


@pytest.mark.parametrize("reached", [True, False])
@pytest.mark.parametrize("sparsities", [(0.9,), (0.9, 0.5)])
def test_the_level_of_chance_is_drawn_in_the_frame_or_told(
    make_run, unpainted, tmp_path, monkeypatch, sparsities, reached
):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    folders = [make_run("px", sparsity, classes=[*"abcdefgh"], test_accuracy=0.8) for sparsity in sparsities]
    folders += [make_run("random", 0.9, classes=[*"abcdefgh"], test_accuracy=0.13)] if reached else []
    page = build(folders, tmp_path / "out").page.read_text()
    assert "what a constant guess reaches: 12.50&nbsp;%" in page
    axes, below = drawn[0].axes[0], "Chance, 12.5 %, lies below the frame" in page
    named = "chance (12.5)" in axes.get_legend_handles_labels()[1]
    lines = [line for line in axes.lines if line.get_label() == "chance (12.5)"]
    low = axes.get_ylim()[0] if len(sparsities) > 1 else axes.get_xlim()[0]
    assert (named, len(lines), below) == ((True, 1, False) if reached else (False, 0, True)) and (
        low <= 12.5
    ) == reached


def test_broken_and_failed_runs_are_listed_and_names_are_escaped(make_run, unpainted, tmp_path):
    good, broken, failed = make_run("<b>mine</b>"), make_run("random"), make_run("snip")
    (broken / "mask.safetensors").write_text("x")
    (failed / "result.json").unlink()
    (failed / "failed.json").write_text('{"status": "failed", "error": "TrainingDiverged: loss is nan"}')
    report = build([good, broken, failed], tmp_path / "out")
    reasons = dict(report.left_out)
    assert (report.runs, set(reasons)) == (1, {broken, failed})
    assert "mask.safetensors cannot be read" in reasons[broken] and "\n" not in reasons[broken]
    page = report.page.read_text()
    assert broken.name in page and "failed: TrainingDiverged: loss is nan" in page
    assert "<b>mine</b>" not in page and "&lt;b&gt;mine" in page
    assert "Only dense runs" in build([make_run("dense")], tmp_path / "dense").page.read_text()


def test_what_cannot_be_reported_is_an_error_and_writes_nothing(make_run, unpainted, tmp_path):
    folder, unfinished = make_run("px"), make_run("snip")
    (unfinished / "result.json").unlink()
    out, empty, taken = tmp_path / "out", tmp_path / "empty", tmp_path / "taken"
    empty.mkdir()
    taken.write_text("")
    copy = shutil.copytree(folder, tmp_path / "copy" / folder.name)
    for folders, place, options, message in (
        ([empty], out, {}, "no run found"),
        ([unfinished], out, {}, "no finished run"),
        ([out], out, {}, "no such folder"),
        ([folder, copy], out, {}, "two run folders are named"),
        ([folder], taken, {}, "report cannot be written to"),
        ([folder], out, {"x": "params"}, "unknown x axis 'params'.*Known"),
        ([folder], out, {"published": "yes"}, "unknown choice for published 'yes'.*Known"),
    ):
        with refused(message):
            build(folders, place, **options)
    assert not out.exists()
    assert build([folder, folder], out).runs == 1


def test_metrics_and_starts_have_sections_of_their_own(make_run, unpainted, tmp_path):
    tasks = [{"task": 1, "zero_shot": 0.25, "fine_tuned": 0.5}]
    folders = [
        make_run("px"),
        make_run("px", weights="mocov2:w.pth"),
        make_run("px", 0.9, 1, metric="miou", test_miou=0.25),
        make_run("px", 0.9, 2, tasks=tasks),
    ]
    report = build(folders, tmp_path)
    page = report.page.read_text()
    heads = [head.removeprefix("resnet20 on fashion-mini") for head in re.findall("<h2>(.*)</h2>", page)[:4]]
    assert heads == ["", "", ", transfer", ", weights mocov2:w.pth"]
    figures = {path.stem.replace("resnet20-fashion-mini", "*") for path in report.figures}
    main = {"accuracy_*", "miou_*", "transfer_*-transfer", "accuracy_*-mocov2-w-pth"}
    assert {name for name in figures if not name.startswith("training")} == main
    assert page.count('<th scope="col">mean IoU</th>') == 1 and page.count('<th scope="col">zero-shot</th>') == 1
    assert page.count("<td>25.00\u00a0%</td>") + page.count("25.00&nbsp;%") == 2
    assert len(pd.read_csv(report.table)) == 4


def test_options_of_the_command_reach_the_report(make_run, unpainted, tmp_path, capsys):
    for sparsity in (0.5, 0.982):
        folder = make_run("px", sparsity, data="cifar10", parameters=round(1000 * (1 - sparsity)), bytes=47_100)
    words = ["report", str(folder.parent), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "PX paper" in page and "against parameters" not in page and "<td>0.0471</td>" in page
    assert "| 0.0471 MB |" in (tmp_path / "out" / "summary.md").read_text()
    assert main([*words, "--published", "none"]) == 0
    assert "PX paper" not in (tmp_path / "out" / "index.html").read_text()
    assert main([*words, "--x", "parameters"]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "against parameters" in page and "PX paper" not in page
    assert pd.read_csv(tmp_path / "out" / "table.csv")["parameters"].tolist() == [500, 18]
    assert capsys.readouterr().err == ""


def panel_of(*folders, x="sparsity"):
    records, _ = read_all(folders)
    runs = runs_table(records)
    look = styles(zip(runs["method"], runs["series"], strict=True))
    return Panel(runs, {record.folder.name: record for record in records}, look, x, published_for(records))


def dashes(axes):
    """Labels of the legend's entries for published curves."""
    return [text.get_text() for text in axes.get_legend().get_texts() if "paper" in text.get_text()]


def test_every_run_lies_inside_the_frame_and_dots_are_ordered_by_accuracy(make_run):
    folders = [make_run("px", 0.9, seed, test_accuracy=0.8 + seed / 100) for seed in range(2)]
    low, high = _frame(panel_of(*folders))
    assert low < 80 and high > 81
    assert high - low < 8, "Student's interval of two seeds alone is 12.7 points wide"
    means = {"random": 0.6, "px": 0.8, "magnitude": 0.7, "dense": 0.9}
    drawn, caption = _dots(panel_of(*(make_run(method, 0.9, 2, test_accuracy=mean) for method, mean in means.items())))
    axes = drawn.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["random", "magnitude", "px"]
    assert axes.get_legend_handles_labels()[1] == ["dense (90.0)"]
    assert "interval" not in caption  # one seed has none


@pytest.mark.parametrize("epochs", [0, 1])
def test_training_curves_need_two_epochs(make_run, unpainted, epochs):
    folder = make_run("px")
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(rows[:epochs]))
    assert [picture.name for picture in draw(panel_of(folder))] == ["accuracy"]


def test_published_curves_lie_behind_in_the_colour_of_their_method(make_run):
    """Two methods and the dense network at the nine sparsities of the paper."""
    make_run("dense", data="cifar10", test_accuracy=0.92)
    for method, (place, sparsity) in product(("px", "snip"), enumerate(GRID)):
        folder = make_run(method, sparsity, data="cifar10", test_accuracy=0.9 - place / 100)
    panel = panel_of(folder.parent)
    drawn, caption = _against_sparsity(panel)
    axes = drawn.axes[0]
    behind = [line for line in axes.lines if line.is_dashed() and line.get_marker() not in {"", "None"}]
    ours = [line for line in axes.lines if line.get_label()[:1] != "_"]
    assert max(line.get_zorder() for line in behind) < min(line.get_zorder() for line in ours)
    [px] = [line for line in behind if line.get_color() == panel.look["px"].colour]
    assert np.allclose(px.get_xdata(), [1 - sparsity for sparsity in GRID])
    assert np.allclose(px.get_ydata(), [91.41, 91.14, 90.22, 88.94, 87.98, 86.01, 83.21, 80.71, 76.96])
    snip = [line.get_ydata() for line in behind if line.get_color() == panel.look["snip"].colour]
    assert [np.isnan(curve).tolist() for curve in snip] == [[True] * 2 + [False] * 7, [True] * 2 + [False] * 6 + [True]]
    assert dashes(axes) == ["published: PX paper", "published: NTK-SAP paper"]
    assert "PX paper" in caption


def test_values_at_one_sparsity_stand_beside_ours_and_a_dense_value_is_a_line(make_run):
    panel = panel_of(*(make_run(method, 0.982, data="cifar10", test_accuracy=0.7) for method in ("px", "snip")))
    axes = _dots(panel)[0].axes[0]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    names = [label.get_text() for label in axes.get_yticklabels()]
    found = {names[round(line.get_ydata()[0])]: line.get_xdata()[0] for line in hollow}
    assert found == pytest.approx({"px": 76.96, "snip": 75.49}) and len(hollow) == 2
    assert axes.get_xlim()[1] > 76.96
    setting = {"data": "cifar10", "model": "torchvision:resnet50", "weights": "imagenet"}
    axes = _against_sparsity(panel_of(*(make_run("px", level, **setting) for level in (0.893, 0.982))))[0].axes[0]
    assert dashes(axes) == ["published: PX paper", "dense, PX paper (93.4)"]
    assert any(np.allclose(line.get_ydata(), 93.36) for line in axes.lines)


@pytest.mark.parametrize(
    ("levels", "shown"),
    [
        (GRID, GRID),
        ((0.5, 0.8, 0.89, 0.893, 0.8926, 0.9, 0.95, 0.956, 0.98, 0.9817, 0.982), (0.5, 0.8, 0.89, 0.95, 0.982)),
        ((0.0, 0.99), (0.0, 0.99)),
    ],
)
def test_labels_of_the_sparsity_axis_do_not_run_into_each_other(make_run, levels, shown):
    with mpl.rc_context(fname=SETTINGS):
        drawn = _against_sparsity(panel_of(*(make_run("px", level) for level in levels)))[0]
        drawn.canvas.draw()
        labels = [label for label in drawn.axes[0].get_xticklabels() if label.get_text()]
        boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 + 2 < right.x0 for left, right in pairwise(boxes))
    assert [label.get_text() for label in labels] == [f"{level:g}" for level in shown]


def test_against_parameters_every_network_is_a_point_and_nothing_is_published(make_run):
    def sized(method, sparsity, seed=0):
        size = {"parameters": round(1000 * (1 - sparsity)) + 10 * seed, "multiply_adds": round(5e6 * (1 - sparsity))}
        return make_run(method, sparsity, seed, data="cifar10", **(size if method != "dense" else {"parameters": 1000}))

    folders = [sized("px", level, seed) for level in (0.5, 0.9) for seed in range(2)]
    folders += [sized("small-dense", 0.9), sized("dense", 0.9)]
    axes = _against_size(panel_of(*folders, x="parameters"))[0].axes[0]
    ours = [line for line in axes.lines if line.get_label()[0] != "_"]
    drawn = {line.get_label(): np.asarray(line.get_xdata()).tolist() for line in ours}
    assert drawn == {"px": [505.0, 105.0], "small-dense": [100.0], "dense": [1000.0]}
    low, high = axes.get_xlim()
    assert not dashes(axes) and axes.get_xscale() == "log" and low < 100 and high > 1000
    # Runs without a size are told, and if there are no others it is an error.
    assert "1 of 6 runs hold no multiply-adds" in _against_size(panel_of(*folders, x="multiply-adds"))[1]
    with refused(r"multiply_adds in its result.json; use --x sparsity or run it again"):
        curves(panel_of(make_run("px"), x="multiply-adds"))


def test_sparser_is_further_right_and_the_caption_says_how_many_seeds(study, make_run):
    drawn, caption = _against_sparsity(panel_of(study))
    axes = drawn.axes[0]
    left, right = axes.get_xlim()
    assert axes.get_xscale() == "log" and left > right
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.9", "0.982"]
    assert "n = 3 seeds" in caption
    assert "n = 1 seed)" in _dots(panel_of(make_run("px")))[1]
    uneven = panel_of(make_run("random"), make_run("snip"), make_run("snip", 0.9, 1))
    assert "n = 1 to 2 seeds" in _dots(uneven)[1]


def test_mean_iou_has_its_name_on_axes_and_in_the_training_curves(make_run, unpainted):
    panel = panel_of(*(make_run(method, metric="miou") for method in ("px", "random")))
    assert _dots(panel)[0].axes[0].get_xlabel() == "mean IoU (%) at sparsity 0.9"
    main, training = draw(panel)
    assert (main.name, main.title, training.name) == ("miou", "Mean IoU after training", "training")


def test_transfer_draws_means_over_tasks_before_and_after_fine_tuning(make_run, unpainted):
    def tasks(low):
        return [{"task": k, "zero_shot": low + k / 10, "fine_tuned": low + 0.2 + k / 10} for k in range(2)]

    folders = [make_run("px", 0.9, seed, tasks=tasks(0.5 + seed / 50)) for seed in range(2)]
    folders += [make_run("random", 0.9, 0, tasks=tasks(0.4)), make_run("dense", tasks=tasks(0.6))]
    panel = panel_of(*folders)
    for axes, shift in zip(figure(panel).axes, (0.0, 20.0), strict=True):
        drawn = {line.get_color(): line.get_ydata()[0] for line in axes.lines if len(line.get_ydata()) == 1}
        assert drawn[panel.look["px"].colour] == pytest.approx(56 + shift)
        assert drawn[panel.look["random"].colour] == pytest.approx(45 + shift)
        assert any(np.allclose(line.get_ydata(), 65 + shift) for line in axes.lines)
    pictures = draw(panel)
    assert [picture.name for picture in pictures] == ["transfer", "training"]
    assert "over 2 tasks and over seeds (n = 1 to 2 seeds)" in pictures[0].caption


@pytest.mark.parametrize(("methods", "levels", "numbers"), [(2, 2, True), (5, 9, False)])
def test_bars_of_dead_layers_bear_numbers_while_there_is_room(make_run, methods, levels, numbers):
    names = ("px", "random", "snip", "grasp", "magnitude")[:methods]
    panel = panel_of(*(make_run(name, level, dead_layers=3) for name in names for level in GRID[:levels]))
    texts = [text.get_text() for text in _dead_layers_figure(panel).axes[0].texts]
    assert texts == (["3"] * (methods * levels) if numbers else [])
