import re
import shutil

import pandas as pd
import pytest
import torch

from pathex.cli import main
from pathex.experiments.report import build
from pathex.masks import Mask
from refusals import refused


@pytest.fixture(scope="module")
def report(study, tmp_path_factory):
    return build([study], tmp_path_factory.mktemp("out") / "deep" / "report")


def test_report_writes_tables_figures_and_page(report):
    assert (report.runs, report.left_out) == (27, ())
    figures = {f"{name}.{kind}" for name in ("accuracy", "training") for kind in ("png", "svg")}
    others = {"index.html", "table.csv", "summary.csv", "summary.md", "settings.yaml"}
    assert {path.name for path in report.figures} == figures
    assert {path.name for path in report.page.parent.iterdir()} == figures | others
    table = pd.read_csv(report.table)
    assert len(table) == 27 and table.loc[table["method"] == "dense", "density"].eq(1).all()
    assert len(pd.read_csv(report.summary)) == 9


def test_page_needs_nothing_beside_it(report):
    text = report.page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "http" not in text and "<script" not in text
    assert text.count("data:image/svg+xml;base64,") == 2
    assert "prefers-color-scheme: dark" in text and "@media print" in text and 'name="viewport"' in text


def test_same_runs_give_the_same_bytes(report, study, tmp_path):
    build([study], tmp_path)
    for path in report.page.parent.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_masks_and_dead_layers_have_figures_of_their_own(make_run, unpainted, tmp_path):
    for method, kept in (("px", 1), ("magnitude", 0)):
        folder = make_run(method, 0.9, dead_layers=1 - kept)
        layer = torch.zeros(4, 3, dtype=torch.bool)
        layer[:kept] = True
        Mask({"a.weight": layer, "b.weight": ~layer}).save(folder / "mask.safetensors")
    report = build([folder.parent], tmp_path)
    assert {path.stem for path in report.figures} == {"accuracy", "layers", "dead_layers", "training"}
    assert "A cross at the foot" in report.page.read_text()


def test_each_model_and_data_set_has_its_own_figures(make_run, unpainted, tmp_path):
    report = build([make_run("px"), make_run("px", model="timm:resnet18")], tmp_path)
    names = {path.stem for path in report.figures if path.stem.startswith("accuracy")}
    assert names == {"accuracy_resnet20-fashion-mini", "accuracy_timm-resnet18-fashion-mini"}
    folders = [make_run(method, data=f"npz:/{method}/mine.npz") for method in ("px", "snip")]  # of one short name
    report = build(folders, tmp_path)
    assert len({path for path in report.figures if path.name.startswith("accuracy")}) == 4
    assert all(path.exists() for path in report.figures)


def test_a_broken_run_is_listed_and_names_are_escaped(make_run, unpainted, tmp_path):
    good, broken = make_run("<b>mine</b>"), make_run("random")
    (broken / "mask.safetensors").write_text("x")
    report = build([good.parent, broken], tmp_path / "out")
    [(folder, why)] = report.left_out
    assert (report.runs, folder) == (1, broken)
    assert "mask.safetensors cannot be read" in why and "\n" not in why
    page = report.page.read_text()
    assert broken.name in page and "<b>mine</b>" not in page and "&lt;b&gt;mine" in page
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
    assert main(["report", str(make_run("snip")), "--out", str(tmp_path / "none"), "--x", "multiply-adds"]) == 2
    error = capsys.readouterr().err
    assert (
        "holds multiply_adds in its result.json; use --x sparsity or run it again" in error and error.count("\n") == 1
    )
    assert not (tmp_path / "none").exists()


def test_a_failed_run_is_named_with_its_reason(make_run, unpainted, tmp_path, capsys):
    make_run("px")
    failed = make_run("snip")
    (failed / "result.json").unlink()
    (failed / "failed.json").write_text('{"status": "failed", "error": "TrainingDiverged: loss is nan"}')
    assert main(["report", str(failed.parent), "--out", str(tmp_path / "out")]) == 0
    assert f"left out {failed}: failed: TrainingDiverged: loss is nan" in capsys.readouterr().err
    assert "failed: TrainingDiverged: loss is nan" in (tmp_path / "out" / "index.html").read_text()
