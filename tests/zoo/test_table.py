"""Rows, shares and the page, the script that makes them, and what the committed rows must show."""

import json
import runpy
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import pathex
from benchmarks.zoo import table
from benchmarks.zoo.catalogue import LEFT_OUT, catalogue
from benchmarks.zoo.table import EXTRA, ROWS, SIX, UNTRIED, Row, page, plan, read_rows, shares

TYPED = (
    Row("timm:test_vit", "px", 2, "ok", "0", "26", 1.25),
    Row("timm:test_resnet", "px", 2, "ok", "0", "16", 0.5, "4 scales, read as one"),
    Row("timm:test_resnet", "magnitude", 2, "ok", "3", "16", 0.1),
    Row("timm:test_vit", "synflow", 2, "refused", message="no rule to read f in module 'a.b' (B) as paths: x|y"),
    Row("timm:test_nfnet", "synflow", 2, "refused", message="no rule to read f in module 'c' (B) as paths: x|y"),
    Row("timm:test_nfnet", "px", 2, "error", message="Defect: <none>"),
    Row("timm:test_vit4", "px", 2, "absent", message="unknown"),
)
committed = pytest.mark.skipif(not ROWS.exists(), reason="scripts/zoo.py has not been run")


def test_rows_come_back_in_the_order_of_the_catalogue(tmp_path):
    path = tmp_path / "rows.csv"
    assert read_rows(path) == []
    table.write_rows(TYPED, path)
    found = read_rows(path)
    assert set(found) == set(TYPED)
    order = [architecture.model for architecture in catalogue()]
    keys = [(order.index(row.model), row.scorer) for row in found]
    assert keys == sorted(keys)
    assert "timm:test_resnet,resnet,32,373076," in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.csv"]


def test_shares_plans_and_messages():
    assert list(shares(TYPED).items()) == [("px", (2, 3)), ("synflow", (0, 2)), ("magnitude", (1, 1))]
    variant = replace(TYPED[0], scorer="synflow:per_sample=one")
    assert shares([variant, TYPED[3]]) == {"synflow": (0, 1), "synflow:per_sample=one": (1, 1)}
    every, six = (next(each for each in catalogue() if each.methods == methods) for methods in ("all", "six"))
    known = [*SIX, *EXTRA, "other"]
    assert plan(every, known) == dict.fromkeys(known, 2)
    assert plan(six, known) == {**dict.fromkeys(SIX, 2), **dict.fromkeys(EXTRA, 1)}
    assert plan(six, ["px", "other"]) == {"px": 2}
    assert table.one_line("a\n  b  /home/someone/.venv/lib/x.py:3 c") == "a b x.py:3 c"
    assert len(table.one_line("word " * 100)) == 300


def test_the_page_shows_every_row():
    text = page(TYPED, {"torch": "9.9", "timm": "8.8", "python": "7.7"})
    lines = text.splitlines()
    variant = page([*TYPED, replace(TYPED[0], scorer="synflow:per_sample=one")], {})
    assert any(
        line.startswith("| `timm:test_vit` |") and line.endswith("| ok * | ok |") for line in variant.splitlines()
    )
    missing = len(catalogue()) - 4
    assert f"({missing} architectures) and writes this page, of torch 9.9, timm 8.8." in text
    assert "| `px` | 2 | 0 | 0 | 1 | 1 | 66.6 % | 0 |" in lines
    assert "| `magnitude` | 1 | 0 | 0 | 0 | 0 | 100.0 % | 1 |" in lines
    assert "| architecture | side | million parameters | magnitude | synflow | px |" in lines
    assert "| `timm:test_resnet` | 32 | 0.4 | 3 dead |  | ok |" in lines
    reasons = [line for line in lines if "no rule to read f" in line]
    assert reasons == [
        "| `synflow` | refused | no rule to read f (B) as paths: x\\|y | `timm:test_vit`, `timm:test_nfnet` |"
    ]
    assert "| `px` | error | Defect: &lt;none> | `timm:test_nfnet` |" in lines
    assert all(f"`{model}`" in text for model in LEFT_OUT)
    assert all(f"| `{architecture.model}` |" in text for architecture in catalogue())


@committed
def test_the_committed_page_is_that_of_the_committed_rows():
    about = json.loads((ROWS.parent / "environment.json").read_text(encoding="utf-8"))
    assert table.PAGE.read_text(encoding="utf-8") == page(read_rows(), about), "run python scripts/zoo.py --page"


@committed
def test_the_committed_rows_are_complete_and_show_what_they_must():
    rows = read_rows()
    there = {(row.model, row.scorer): row.rounds for row in rows}
    models, known = {row.model for row in rows}, pathex.methods()
    assert not UNTRIED & {row.scorer for row in rows}
    for architecture in catalogue():
        if architecture.model in models:  # the page says how many are missing
            for name, rounds in plan(architecture, known).items():
                assert there.get((architecture.model, name)) == rounds, (architecture.model, name)
    for name in ("px", "magnitude", "random", "snip", "grasp", "ntk-diagonal"):
        good, every = shares(rows)[name]
        assert good >= (0.97 * every if name == "px" else every) and every >= 315, name
    # An error of pathex's own that says why, such as training steps that diverge, is no defect.
    errors = [row for row in rows if row.outcome == "error" and not row.message.startswith("PathexError: ")]
    assert [(row.model, row.scorer, row.message) for row in errors if row.scorer != "px"] == []


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


def test_a_process_that_hangs_is_killed_and_one_that_ends_costs_one_row(script, monkeypatch, tmp_path):
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setitem(script, "_GRACE", 0.3)
    monkeypatch.setitem(script, "__file__", str(sleeper))
    assert script["_process"](RESNET.model, {"px": 2}, 0.2) == ([], "the process did not answer")

    def dies(model, wanted, limit):
        label, rounds = next(iter(wanted.items()))
        rows = [Row(model, label, rounds, "ok", "0", "1")] if label != "snip" else []
        return rows, "the process ended with code -9"

    monkeypatch.setitem(script, "_process", dies)
    rows = script["attempt"](RESNET, {"random": 2, "snip": 2, "px": 2}, 1.0)
    assert [(row.scorer, row.outcome) for row in rows] == [("random", "ok"), ("snip", "error"), ("px", "ok")]
    assert rows[1].message == "the process ended with code -9"


def test_rows_with_an_outcome_are_run_again_and_other_versions_and_unknown_methods_refused(script, tmp_path, capsys):
    rows = [Row(RESNET.model, "px", 2, "refused"), Row(RESNET.model, "random", 2, "ok")]
    arguments = ["--only", RESNET.model, "--methods", "px", "random", "snip"]
    for again, expected in (((), {"snip": 2}), (("--again", "refused", "error"), {"px": 2, "snip": 2})):
        wanted = script["select"](rows, script["_arguments"]([*arguments, *again]))
        assert [labels for _, labels in wanted] == [expected]
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
