"""The script that runs the zoo: rows from processes, resumed, with limits."""

import json
import runpy
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.zoo.catalogue import catalogue
from benchmarks.zoo.table import Row, read_rows

SCRIPT = Path(__file__).parents[2] / "scripts" / "zoo.py"
RESNET = next(architecture for architecture in catalogue() if architecture.model == "timm:test_resnet")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        found = runpy.run_path(str(SCRIPT), run_name="zoo_script")
    return found["main"].__globals__  # what its functions see, so that parts can be replaced


def test_rows_of_an_architecture_and_a_second_call_that_has_nothing_to_do(script, tmp_path, capsys):
    model, out = "timm:test_vit", tmp_path / "rows.csv"
    arguments = ["--only", "*:test_vit", "--methods", "random", "px-literal", "--jobs", "2", "--out", str(tmp_path)]
    assert script["main"](arguments) == 0
    rows = {row.scorer: row for row in read_rows(out)}
    assert {row.model for row in rows.values()} == {model}
    assert (rows["random"].outcome, rows["px-literal"].outcome) == ("ok", "refused")
    assert rows["px-literal:per_sample=one"].outcome == "ok"  # tried because the plain call was refused
    assert json.loads((tmp_path / "environment.json").read_text())["threads"] == 1
    printed = capsys.readouterr().out
    assert f"[1/1] {model}: random ok" in printed
    assert "random: 1 of 1 (100.0 %)" in printed
    written = out.read_bytes()
    assert script["main"](arguments) == 0 and out.read_bytes() == written
    printed = capsys.readouterr().out
    assert "[1/" not in printed and "random: 1 of 1 (100.0 %)" in printed


def test_rows_of_what_the_library_does_not_have_and_of_what_takes_too_long(script, monkeypatch):
    (row,) = script["work"](RESNET.model, [("px", 2)], 0.01)
    assert (row.outcome, row.dead) == ("timeout", "")
    monkeypatch.setitem(script, "catalogue", lambda: [type(RESNET)("timm:gone", "resnet", 32, {})])
    rows = list(script["work"]("timm:gone", [("px", 2), ("snip", 2)], 10.0))
    assert [(row.scorer, row.outcome) for row in rows] == [("px", "absent"), ("snip", "absent")]
    assert rows[0].message.startswith("InvalidInput: unknown timm model 'gone'")


def test_a_process_that_ends_costs_one_row(script, monkeypatch):
    def dies(model, wanted, limit):
        label, rounds = next(iter(wanted.items()))
        rows = [Row(model, label, rounds, "ok", "0", "1")] if label != "snip" else []
        return rows, "the process ended with code -9"

    monkeypatch.setitem(script, "_process", dies)
    rows = script["attempt"](RESNET, {"random": 2, "snip": 2, "px": 2}, 1.0)
    assert [(row.scorer, row.outcome) for row in rows] == [("random", "ok"), ("snip", "error"), ("px", "ok")]
    assert rows[1].message == "the process ended with code -9"


def test_a_process_that_hangs_is_killed(script, monkeypatch, tmp_path):
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setitem(script, "_GRACE", 0.3)
    monkeypatch.setitem(script, "__file__", str(sleeper))
    assert script["_process"](RESNET.model, {"px": 2}, 0.2) == ([], "the process did not answer")


def test_rows_with_an_outcome_are_run_again(script):
    rows = [Row(RESNET.model, "px", 2, "refused"), Row(RESNET.model, "random", 2, "ok")]
    arguments = ["--only", RESNET.model, "--methods", "px", "random", "snip"]
    for again, expected in (((), {"snip": 2}), (("--again", "refused", "error"), {"px": 2, "snip": 2})):
        wanted = script["select"](rows, script["_arguments"]([*arguments, *again]))
        assert [labels for _, labels in wanted] == [expected]


def test_other_versions_and_unknown_methods_are_refused(script, tmp_path, capsys):
    script["write_rows"]([Row(RESNET.model, "px", 2, "ok", "0", "1")], tmp_path / "rows.csv")
    (tmp_path / "environment.json").write_text('{"torch": "0.1", "torchvision": "0.1", "timm": "0.1"}')
    assert script["main"](["--out", str(tmp_path), "--only", RESNET.model]) == 2
    assert "names other versions" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        script["main"](["--methods", "pxx"])
    assert "unknown method or option 'pxx'. Known: px" in capsys.readouterr().err


def test_room_is_shared_and_given_back(script):
    room, inside, counts = script["Room"](10.0), [], []

    def one(number):
        with room.taken(4.0):
            inside.append(number)
            counts.append(len(inside))
            time.sleep(0.05)
            inside.remove(number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(6)))
    assert max(counts) == 2
    with room.taken(99.0):  # more than there is: alone
        pass
