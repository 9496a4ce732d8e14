import re
import shutil

import pandas as pd
import pytest
import torch

from pathex.errors import InvalidInput, UnknownName
from pathex.experiments.report import build
from pathex.masks import Mask


@pytest.fixture(scope="module")
def report(study, tmp_path_factory):
    return build([study], tmp_path_factory.mktemp("out") / "deep" / "report")


def test_report_writes_tables_figures_and_page(report):
    assert (report.runs, report.left_out) == (27, ())
    assert {path.name for path in report.figures} == {
        f"{name}.{kind}" for name in ("accuracy", "training") for kind in ("png", "svg")
    }
    written = {path.name for path in report.page.parent.iterdir()}
    assert written == {path.name for path in report.figures} | {
        "index.html", "table.csv", "summary.csv", "summary.md", "settings.yaml"
    }  # fmt: skip
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


def test_names_are_escaped_in_the_page(make_run, unpainted, tmp_path):
    page = build([make_run("<b>mine</b>")], tmp_path).page.read_text()
    assert "<b>mine</b>" not in page and "&lt;b&gt;mine" in page


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
    assert {path.stem for path in report.figures if path.stem.startswith("accuracy")} == {
        "accuracy_resnet20-fashion-mini",
        "accuracy_timm-resnet18-fashion-mini",
    }


def test_dense_runs_alone_make_a_report(make_run, unpainted, tmp_path):
    report = build([make_run("dense")], tmp_path)
    assert "Only dense runs" in report.page.read_text()


def test_a_broken_run_is_listed_and_not_fatal(make_run, unpainted, tmp_path):
    good, broken = make_run("px"), make_run("random")
    (broken / "mask.safetensors").write_text("x")
    report = build([good.parent, broken], tmp_path / "out")
    [(folder, why)] = report.left_out
    assert (report.runs, folder) == (1, broken)
    assert "mask.safetensors cannot be read" in why and "\n" not in why
    assert broken.name in report.page.read_text()


def test_no_run_at_all_is_an_error_and_writes_nothing(make_run, unpainted, tmp_path):
    unfinished = make_run("px")
    (unfinished / "result.json").unlink()
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    for folder, message in ((empty, "no run found"), (unfinished, "no finished run"), (out, "no such folder")):
        with pytest.raises(InvalidInput, match=message):
            build([folder], out)
    assert not out.exists()


def test_two_runs_of_one_name_are_refused_and_one_run_given_twice_is_not(make_run, unpainted, tmp_path):
    folder = make_run("px")
    assert build([folder, folder.parent], tmp_path / "out").runs == 1
    shutil.copytree(folder, tmp_path / "copy" / folder.name)
    with pytest.raises(InvalidInput, match="two run folders are named"):
        build([folder, tmp_path / "copy"], tmp_path / "out")


def test_a_file_in_the_way_of_the_report_is_an_input_error(make_run, unpainted, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InvalidInput, match="report cannot be written to"):
        build([make_run("px")], tmp_path / "taken")


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
    assert re.findall("<h2>(.*)</h2>", page)[:4] == [
        "resnet20 on fashion-mini",
        "resnet20 on fashion-mini",
        "resnet20 on fashion-mini, transfer",
        "resnet20 on fashion-mini, weights mocov2:w.pth",
    ]
    main = {path.stem for path in report.figures if not path.stem.startswith("training")}
    assert main == {
        "accuracy_resnet20-fashion-mini",
        "miou_resnet20-fashion-mini",
        "transfer_resnet20-fashion-mini-transfer",
        "accuracy_resnet20-fashion-mini-mocov2-w-pth",
    }
    assert page.count('<th scope="col">mean IoU</th>') == 1 and page.count('<th scope="col">zero-shot</th>') == 1
    assert page.count("<td>25.00\u00a0%</td>") + page.count("25.00&nbsp;%") == 2
    assert len(pd.read_csv(report.table)) == 4


def test_experiments_of_one_short_name_do_not_overwrite_each_other(make_run, unpainted, tmp_path):
    folders = [make_run(method, data=f"npz:/{method}/mine.npz") for method in ("px", "snip")]
    report = build(folders, tmp_path)
    assert len({path for path in report.figures if path.name.startswith("accuracy")}) == 4
    assert all(path.exists() for path in report.figures)


@pytest.mark.parametrize("wrong", [{"x": "params"}, {"published": "yes"}])
def test_unknown_choices_list_the_known(make_run, unpainted, tmp_path, wrong):
    with pytest.raises(UnknownName, match="Known"):
        build([make_run("px")], tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()
