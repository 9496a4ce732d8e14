import json
from collections.abc import Callable
from pathlib import Path

from pathex.report._records import read_all

MakeRun = Callable[..., Path]


def test_a_run_is_found_at_any_depth_and_once(make_run: MakeRun) -> None:
    folder = make_run("px")
    records, problems = read_all([folder, folder.parent.parent])
    assert ([record.folder for record in records], problems) == ([folder], [])


def test_options_get_dotted_names_and_other_mappings_stay_whole(make_run: MakeRun) -> None:
    folder = make_run("px", method_options={"redraw": True}, allocation={"layer.0.weight": 0.5})
    [record] = read_all([folder])[0]
    assert record.config["method_options.redraw"] is True
    assert record.config["allocation"] == {"layer.0.weight": 0.5}


def test_a_dense_run_has_no_sparsity_whatever_its_settings_say(make_run: MakeRun) -> None:
    [record] = read_all([make_run("dense", 0.9)])[0]
    assert (record.pruned, record.sparsity) == (False, 0.0)


def test_environment_is_flat_and_may_be_missing(make_run: MakeRun) -> None:
    first, second = make_run("px"), make_run("random")
    (second / "environment.json").unlink()
    found = {record.method: record.environment for record in read_all([first.parent])[0]}
    assert found == {"px": {"torch": "2.x", "device.name": "cpu", "device.threads": 1}, "random": {}}


def test_an_accuracy_that_is_no_number_leaves_the_run_out(make_run: MakeRun) -> None:
    good, bad = make_run("px"), make_run("random")
    result = json.loads((bad / "result.json").read_text()) | {"test_accuracy": None}
    (bad / "result.json").write_text(json.dumps(result))
    records, [problem] = read_all([good, bad])
    assert [record.folder for record in records] == [good]
    assert problem.reason == "result.json holds no test_accuracy"
