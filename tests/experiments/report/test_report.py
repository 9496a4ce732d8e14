import json
import os
import re
import shutil
from itertools import product
from xml.etree import ElementTree

import pandas as pd
import pytest

from drawn import channel, layers, legend
from experiments.report.conftest import GRID, fake_mask
from pathex.cli import main
from pathex.experiments.report import build
from pathex.experiments.report.curves import frame, main_figure
from pathex.experiments.report.figures import draw
from pathex.experiments.report.panel import Panel
from pathex.experiments.report.published import published_for
from pathex.experiments.report.records import read_all
from pathex.experiments.report.tables import runs_table
from pathex.figures import script, styles
from refusals import refused


def test_a_report_is_tables_figures_and_a_page_that_needs_nothing_beside_it(study, tmp_path):
    report = build([study], tmp_path / "deep" / "report")
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
    text = report.page.read_text()
    own = text.replace(script(), "")
    assert len(own) < len(text) - 500_000 and not re.search(r"""(src|href)=["'](?!data:)|https?:""", own)
    assert "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'" in text
    assert text.count('vegaEmbed("#') == 3 and len(text) < 1_200_000  # the metric, and loss and accuracy of training
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


def test_what_is_left_of_each_layer_is_drawn_from_input_to_output(make_run):
    dead = {("px", 0): {"a.weight": [], "b.weight": [2]}, ("px", 1): {"a.weight": [0], "b.weight": [0, 1]}}
    dead["snip", 0] = {"a.weight": [0, 1, 2], "b.weight": []}
    for (method, seed), channels in dead.items():
        folder = make_run(method, 0.9, seed)
        fake_mask(folder, a=9, b=9)
        report = {"channels": {"a.weight": 4, "b.weight": 4}, "dead_channels": channels}
        (folder / "pruning.json").write_text(json.dumps({"report": report}), encoding="utf-8")
    fake_mask(make_run("magnitude"), a=9, b=9)  # of an earlier version, which tells nothing of channels
    [picture] = [each for each in draw(panel_of(folder.parent)) if each.name == "channels"]
    rows = {
        (row["series"], row["layer"]): (row["kept"], row["total"]) for row in layers(picture.charts[0], "bar")[0].rows
    }
    assert list(rows) == [("px", "0  a"), ("px", "1  b"), ("snip", "0  a"), ("snip", "1  b")]
    assert list(rows.values()) == [(3.5, 4), (2.5, 4), (1, 4), (4, 4)]
    (folder / "pruning.json").write_text('{"report": {"channels": {"a.weight": 4}}}', encoding="utf-8")
    _, [problem] = read_all([folder.parent])
    assert problem.folder == folder


def test_outputs_that_nothing_leads_to_have_a_column_where_there_are_some(make_run, unpainted, tmp_path):
    folder = make_run("px", dead_outputs=0, train_loss=0.5)
    assert "dead outputs" not in build([folder], tmp_path / "one").page.read_text()
    for seed, outputs in ((0, 2), (1, 1)):
        make_run("ntk-sap", 0.9, seed, dead_outputs=outputs)
    make_run("snip")  # of an earlier version
    report = build([folder.parent], tmp_path / "two")
    page, text = report.page.read_text(), report.markdown.read_text()
    assert "dead outputs <span" in page and '<td class="warn">1.5</td>' in page
    assert "| dead layers | dead outputs |" in text and "| 0 | 1.5 |" in text and "| 0 | — |" in text
    table = pd.read_csv(report.table).set_index("method")
    assert table.loc["px", "dead_outputs"] == 0 and table["dead_outputs"].isna().sum() == 1
    assert table.loc["px", "train_loss"] == 0.5 and table["train_loss"].isna().sum() == 3


def test_masks_and_dead_layers_have_figures_of_their_own(make_run, unpainted, tmp_path):
    for method, kept in (("px", 3), ("magnitude", 0)):
        folder = make_run(method, 0.9, dead_layers=1 - kept // 3)
        fake_mask(folder, a=kept, b=12 - kept)
    report = build([folder.parent], tmp_path)
    assert {path.stem for path in report.figures} == {"accuracy", "layers", "overlap", "dead_layers", "training"}
    page = report.page.read_text()
    assert "A cross is a layer that lost every weight" in page and "Chance" not in page
    assert "the whole network has density 0.1." in page and "drawn at random would share 0.053" in page


def test_the_map_of_layers_and_the_matrix_of_masks_hold_what_the_masks_say(make_run):
    kept = {("px", 0): {"a": 3, "b": 9}, ("px", 1): {"a": 6, "b": 0}, ("random", 0): {"b": 6, "c": 4, "a": 0}}
    for (method, seed), counts in kept.items():
        folder = make_run(method, 0.9, seed)
        fake_mask(folder, **counts)
    fake_mask(make_run("dense"), a=12, b=12)
    make_run("small-dense", 0.9)  # without a mask
    found = {picture.name: picture.charts[0] for picture in draw(panel_of(folder.parent))}
    cells = {(row["series"], row["layer"]): row["value"] for layer in layers(found["layers"]) for row in layer.rows}
    expected = {("px", "0  a"): 4.5 / 12, ("px", "1  b"): 4.5 / 12, ("random", "0  a"): 0, ("random", "1  b"): 0.5}
    assert cells == pytest.approx(expected)
    [cross] = layers(found["layers"], "point")
    assert [(row["series"], row["layer"]) for row in cross.rows] == [("random", "0  a")]
    names = {f"{method}, seed {seed}": counts for (method, seed), counts in kept.items()}
    rows = [row for layer in layers(found["overlap"])[:2] for row in layer.rows]
    values = {(row["first"], row["second"]): row["value"] for row in rows}
    for first, second in product(names, names):
        both, either = (sum(pick(names[first][k], names[second][k]) for k in "ab") for pick in (min, max))
        assert values[first, second] == pytest.approx(both / either)
    assert len(rows) == 9
    assert [row["value"] for row in layers(found["overlap"], "point")[0].rows] == [0, 0]
    # Nothing to compare: one mask, or none over the same tensors.
    fake_mask(folder, d=1)
    assert "overlap" not in {picture.name for picture in draw(panel_of(folder.parent))}
    assert "overlap" not in {picture.name for picture in draw(panel_of(folder))}


@pytest.mark.parametrize("reached", [True, False])
@pytest.mark.parametrize("sparsities", [(0.9,), (0.9, 0.5)])
def test_the_level_of_chance_is_drawn_in_the_frame_or_told(
    make_run, unpainted, tmp_path, monkeypatch, sparsities, reached
):
    drawn = []
    collect = lambda *charts, **_: drawn.extend(charts) or (b"", b"")  # noqa: E731
    monkeypatch.setattr("pathex.experiments.report.assembly.painted", collect)
    folders = [make_run("px", sparsity, classes=[*"abcdefgh"], test_accuracy=0.8) for sparsity in sparsities]
    folders += [make_run("random", 0.9, classes=[*"abcdefgh"], test_accuracy=0.13)] if reached else []
    page = build(folders, tmp_path / "out").page.read_text()
    assert "what a constant guess reaches: 12.50&nbsp;%" in page
    below = "Chance, 12.5 %, lies below the frame" in page
    lines = [row for layer in layers(drawn[0], "rule") for row in layer.rows if row["series"] == "chance (12.5)"]
    low, _ = channel(drawn[0], "y" if len(sparsities) > 1 else "x")["scale"]["domain"]
    assert (len(lines), below) == ((1, False) if reached else (0, True)) and (low <= 12.5) == reached
    assert not reached or ("chance (12.5)" in legend(drawn[0]) and lines[0]["mean"] == 12.5)


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
    foreign = broken.rename(broken.with_name(os.fsdecode(b"caf\xe9")))
    (foreign / "mask.safetensors").unlink()
    report = build([good, foreign], tmp_path / "named")
    assert report.runs == 1 and "caf\\udce9</code>: its name or its files cannot be written" in report.page.read_text()
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
        ([folder, copy], out, {}, f"two run folders are named {folder.name!r}, {folder} and {copy}: "),
        ([folder], taken, {}, "report cannot be written to"),
        ([folder], out, {"x": "params"}, "unknown x axis 'params'.*Known"),
        ([folder], out, {"published": "yes"}, "unknown choice for published 'yes'.*Known"),
    ):
        with refused(message):
            build(folders, place, **options)
    assert not out.exists()
    assert build([folder, folder], out).runs == 1


def test_the_page_and_the_markdown_show_one_table(make_run, unpainted, tmp_path):
    folders = [make_run(method, 0.9, seed, dead_layers=seed) for seed in range(2) for method in ("px", "random")]
    report = build([*folders, make_run("dense", bytes=47_100), make_run("px", 0.98)], tmp_path / "out")
    lines = [line.split(" | ") for line in report.markdown.read_text().replace(" %", "\u00a0%").splitlines()]
    page = re.findall("<tr class(.*?)</tr>", report.page.read_text(), re.DOTALL)
    rows = [re.findall(r"([^<>]*)</t[dh]>", row) for row in page]
    assert lines[0][:4] == ["| model", "data", "method", "sparsity"] and lines[0][8:10] == ["kept weights", "of"]
    assert rows == [[*line[2:9], *line[10:-1], line[-1].removesuffix(" |")] for line in lines[2:]]
    assert [(row[1], row[-1]) for row in rows] == [("—", "—"), ("0.9", "1.5"), ("0.9", "1.5"), ("0.98", "1.5")]
    assert [row.count('class="best"') for row in page] == [0, 1, 0, 1]
    assert [row.count('class="warn"') for row in page] == [0, 1, 1, 0]


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
    heads = [
        head.removeprefix("resnet20 on fashion-mini")
        for head in re.findall("<h2>(.*)</h2>", page.replace(script(), ""))[:4]
    ]
    assert heads == ["", "", ", transfer", ", weights mocov2:w.pth"]
    figures = {path.stem.replace("resnet20-fashion-mini", "*") for path in report.figures}
    main = {"accuracy_*", "miou_*", "transfer_*-transfer", "accuracy_*-mocov2-w-pth"}
    assert {name for name in figures if not name.startswith("training")} == main
    assert page.count('<th scope="col">mean IoU <') == 1 and page.count('<th scope="col">zero-shot <') == 1
    assert page.count(">25.00\u00a0%</td>") == 2
    assert len(pd.read_csv(report.table)) == 4


def test_options_of_the_command_reach_the_report(make_run, unpainted, tmp_path, capsys):
    for sparsity in (0.5, 0.982):
        folder = make_run("px", sparsity, data="cifar10", parameters=round(1000 * (1 - sparsity)), bytes=47_100)
    words = ["report", str(folder.parent), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "PX paper" in page and "against parameters" not in page and "<td>0.0471</td>" in page
    assert "| 0.0471 |" in (tmp_path / "out" / "summary.md").read_text()
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


def test_every_run_lies_inside_the_frame_and_dots_are_ordered_by_accuracy(make_run):
    folders = [make_run("px", 0.9, seed, test_accuracy=0.8 + seed / 100) for seed in range(2)]
    low, high = frame(panel_of(*folders))
    assert low < 80 and high > 81
    assert high - low < 8, "Student's interval of two seeds alone is 12.7 points wide"
    means = {"random": 0.6, "px": 0.8, "magnitude": 0.7, "dense": 0.9}
    drawn = main_figure(panel_of(*(make_run(method, 0.9, 2, test_accuracy=mean) for method, mean in means.items())))
    chart = drawn.charts[0]
    assert channel(chart, "y")["scale"]["domain"] == ["px", "magnitude", "random"]
    assert legend(chart) == ["dense (90.0)"]
    assert [row["mean"] for row in layers(chart, "text")[0].rows] == pytest.approx([80, 70, 60])
    assert "interval" not in drawn.caption  # one seed has none


@pytest.mark.parametrize("epochs", [0, 1])
def test_training_curves_need_two_epochs(make_run, unpainted, epochs):
    folder = make_run("px")
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(rows[:epochs]))
    assert [picture.name for picture in draw(panel_of(folder))] == ["accuracy"]
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "lr": 0.1}\n{"epoch": 2, "lr": 0.1}\n')
    assert [picture.name for picture in draw(panel_of(folder))] == ["accuracy"]


def test_published_curves_lie_behind_in_the_colour_of_their_method(make_run):
    """Two methods and the dense network at the nine sparsities of the paper."""
    make_run("dense", data="cifar10", test_accuracy=0.92)
    for method, (place, sparsity) in product(("px", "snip"), enumerate(GRID)):
        folder = make_run(method, sparsity, data="cifar10", test_accuracy=0.9 - place / 100)
    panel = panel_of(folder.parent)
    drawn = main_figure(panel)
    found = layers(drawn.charts[0])
    places = [(place, row) for place, layer in enumerate(found) for row in layer.rows if layer.mark == "line"]
    behind = [(place, row) for place, row in places if row["series"].startswith("published")]
    assert max(place for place, _ in behind) < min(place for place, row in places if row["series"] == "px")
    curves = {
        method: [row["mean"] for _, row in behind if row["colour"] == panel.look[method].colour]
        for method in ("px", "snip")
    }
    assert curves["px"] == pytest.approx([91.41, 91.14, 90.22, 88.94, 87.98, 86.01, 83.21, 80.71, 76.96])
    dashed = {(row["series"], row["method"], tuple(row["dash"])) for _, row in behind}
    assert len(dashed) == 3 and all(dash != (1, 0) for *_, dash in dashed)
    first = [row["sparsity"] for _, row in behind if row["method"] == "px"]
    assert first == pytest.approx(GRID)
    snip = {
        source: [row for _, row in behind if (row["series"], row["method"]) == (source, "snip")]
        for source, *_ in dashed
    }
    hidden = sorted([row["mean"] is None for row in rows] for rows in snip.values())
    assert hidden == [[True] * 2 + [False] * 6 + [True], [True] * 2 + [False] * 7][::-1]
    assert legend(drawn.charts[0])[-2:] == ["published: PX paper", "published: NTK-SAP paper"]
    assert "PX paper" in drawn.caption


def test_values_at_one_sparsity_stand_beside_ours_and_a_dense_value_is_a_line(make_run):
    panel = panel_of(*(make_run(method, 0.982, data="cifar10", test_accuracy=0.7) for method in ("px", "snip")))
    chart = main_figure(panel).charts[0]
    [hollow] = [layer for layer in layers(chart, "point") if not layer.how["filled"]]
    assert {row["row"]: row["mean"] for row in hollow.rows} == pytest.approx({"px": 76.96, "snip": 75.49})
    assert channel(chart, "x")["scale"]["domain"][1] > 76.96
    setting = {"data": "cifar10", "model": "torchvision:resnet50", "weights": "imagenet"}
    chart = main_figure(panel_of(*(make_run("px", level, **setting) for level in (0.893, 0.982)))).charts[0]
    assert legend(chart)[1:] == ["published: PX paper", "dense, PX paper (93.4)"]
    assert [row["mean"] for layer in layers(chart, "rule") for row in layer.rows] == pytest.approx([93.36])


def test_against_parameters_every_network_is_a_point_and_nothing_is_published(make_run):
    def sized(method, sparsity, seed=0):
        size = {"parameters": round(1000 * (1 - sparsity)) + 10 * seed, "multiply_adds": round(5e6 * (1 - sparsity))}
        return make_run(method, sparsity, seed, data="cifar10", **(size if method != "dense" else {"parameters": 1000}))

    folders = [sized("px", level, seed) for level in (0.5, 0.9) for seed in range(2)]
    folders += [sized("small-dense", 0.9), sized("dense", 0.9)]
    chart = main_figure(panel_of(*folders, x="parameters")).charts[0]
    points = layers(chart, "point")[-1].rows
    drawn = {name: [row["parameters"] for row in points if row["series"] == name] for name in legend(chart)}
    assert drawn == {"dense": [1000.0], "px": [105.0, 505.0], "small-dense": [100.0]}
    scale = channel(chart, "x")["scale"]
    low, high = scale["domain"]
    assert scale["type"] == "log" and low < 100 and high > 1000
    # Runs without a size are told, and if there are no others it is an error.
    assert "1 of 6 runs hold no multiply-adds" in main_figure(panel_of(*folders, x="multiply-adds")).caption
    with refused(r"multiply_adds in its result.json; use --x sparsity or run it again"):
        main_figure(panel_of(make_run("px"), x="multiply-adds"))


def test_sparser_is_further_right_and_the_caption_says_how_many_seeds(study, make_run):
    drawn = main_figure(panel_of(study))
    x = channel(drawn.charts[0], "x")
    left, right = x["scale"]["domain"]
    assert (x["field"], x["scale"]["type"]) == ("density", "log") and left > 0.1 and right < 0.018
    assert sorted(x["axis"]["values"]) == pytest.approx([0.018, 0.1])
    close = main_figure(panel_of(*(make_run("px", level) for level in (0.9999999, 0.9999998)))).charts[0]
    assert sorted(channel(close, "x")["axis"]["values"]) == pytest.approx([1e-7, 2e-7])
    assert "n = 3 seeds" in drawn.caption
    assert "n = 1 seed)" in main_figure(panel_of(make_run("px"))).caption
    uneven = panel_of(make_run("random"), make_run("snip"), make_run("snip", 0.9, 1))
    assert "n = 1 to 2 seeds" in main_figure(uneven).caption


def test_bands_and_dots_are_the_intervals_and_the_runs(study):
    panel = panel_of(study)
    chart = main_figure(panel).charts[0]
    values = 100 * panel.runs.loc[(panel.runs["series"] == "px") & (panel.runs["sparsity"] == 0.9), "value"]
    [row] = [row for row in layers(chart, "area")[0].rows if (row["series"], row["sparsity"]) == ("px", 0.9)]
    half = 4.302652729749464 * values.std() / 3**0.5  # Student's t for three values
    assert [row["low"], row["high"]] == pytest.approx([values.mean() - half, values.mean() + half])
    single = layers(chart, "point")[0].rows
    assert [row["mean"] for row in single if (row["series"], row["sparsity"]) == ("px", 0.9)] == pytest.approx(
        [*values]
    )


def test_mean_iou_has_its_name_on_axes_and_in_the_training_curves(make_run, unpainted):
    panel = panel_of(*(make_run(method, metric="miou") for method in ("px", "random")))
    assert channel(main_figure(panel).charts[0], "x")["title"] == "mean IoU (%) at sparsity 0.9"
    main, training = draw(panel)
    assert (main.name, main.title, training.name) == ("miou", "Mean IoU after training", "training")


def test_transfer_draws_means_over_tasks_before_and_after_fine_tuning(make_run, unpainted):
    def tasks(low):
        return [{"task": k, "zero_shot": low + k / 10, "fine_tuned": low + 0.2 + k / 10} for k in range(2)]

    folders = [make_run("px", 0.9, seed, tasks=tasks(0.5 + seed / 50)) for seed in range(2)]
    folders += [make_run("random", 0.9, 0, tasks=tasks(0.4)), make_run("dense", tasks=tasks(0.6))]
    panel = panel_of(*folders)
    pictures = draw(panel)
    for chart, shift, part in zip(pictures[0].charts, (0.0, 20.0), ("zero-shot", "after fine-tuning"), strict=True):
        assert channel(chart, "x")["title"] == f"test accuracy (%), {part}"
        drawn = {row["series"]: row["mean"] for row in layers(chart, "point")[-1].rows}
        assert drawn == pytest.approx({"px": 56 + shift, "random": 45 + shift})
        [line] = [row for layer in layers(chart, "rule") for row in layer.rows if row["series"] == "dense"]
        assert line["mean"] == pytest.approx(65 + shift)
    assert [picture.name for picture in pictures] == ["transfer", "training"]
    assert "over 2 tasks and over seeds (n = 1 to 2 seeds)" in pictures[0].caption
    alone = draw(panel_of(folders[-1]))[0].charts[0]
    assert {row["series"]: row["mean"] for row in layers(alone, "point")[-1].rows} == pytest.approx({"dense": 65})
    more = make_run("px", 0.5, tasks=tasks(0.5))
    for chart in draw(panel_of(*folders, more))[0].charts:
        assert channel(chart, "x")["field"] == "density" and len(layers(chart, "point")[-1].rows) == 3


def test_numbers_of_dead_layers_stand_in_the_cells_while_there_is_room(make_run):
    names = ("px", "random", "snip")
    folders = [make_run(name, level, dead_layers=place) for place, name in enumerate(names) for level in GRID]
    [chart] = next(picture for picture in draw(panel_of(*folders)) if picture.name == "dead_layers").charts
    rows = [(row["series"], row["value"]) for row in layers(chart, "text")[0].rows]
    assert rows == [(name, place) for place, name in enumerate(names) for _ in GRID]
