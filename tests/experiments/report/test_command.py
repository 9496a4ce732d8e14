import pandas as pd
import pytest

from pathex.cli import main


def test_options_of_the_command_reach_the_report(make_run, unpainted, tmp_path, capsys):
    for sparsity in (0.5, 0.982):
        folder = make_run("px", sparsity, data="cifar10", parameters=round(1000 * (1 - sparsity)))
    words = ["report", str(folder.parent), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "PX paper" in page and "against parameters" not in page
    assert main([*words, "--published", "none"]) == 0
    assert "PX paper" not in (tmp_path / "out" / "index.html").read_text()
    assert main([*words, "--x", "parameters"]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "against parameters" in page and "PX paper" not in page
    assert pd.read_csv(tmp_path / "out" / "table.csv")["parameters"].tolist() == [500, 18]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--x", "size"], "--x is 'size'; allowed: sparsity, parameters, multiply-adds"),
        (["--published", "all"], "--published is 'all'; allowed: auto, none"),
        (["--x", "multiply-adds"], "holds multiply_adds in its result.json; use --x sparsity or run it again"),
    ],
)
def test_a_report_that_cannot_be_made_is_one_line(make_run, unpainted, tmp_path, capsys, words, message):
    assert main(["report", str(make_run("px")), "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_failed_run_is_named_with_its_reason(make_run, unpainted, tmp_path, capsys):
    make_run("px")
    failed = make_run("snip")
    (failed / "result.json").unlink()
    (failed / "failed.json").write_text('{"status": "failed", "error": "TrainingDiverged: loss is nan"}')
    assert main(["report", str(failed.parent), "--out", str(tmp_path / "out")]) == 0
    assert f"left out {failed}: failed: TrainingDiverged: loss is nan" in capsys.readouterr().err
    assert "failed: TrainingDiverged: loss is nan" in (tmp_path / "out" / "index.html").read_text()
