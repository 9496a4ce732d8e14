"""Rows, shares and the page; and what the committed rows must show."""

import json
from dataclasses import replace

import pytest

import pathex
from benchmarks.zoo.catalogue import LEFT_OUT, catalogue
from benchmarks.zoo.table import (
    EXTRA,
    PAGE,
    ROWS,
    SIX,
    Row,
    one_line,
    page,
    plan,
    read_rows,
    reason_of,
    shares,
    write_rows,
)

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
    write_rows(TYPED, path)
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
    assert one_line("a\n  b  /home/someone/.venv/lib/x.py:3 c") == "a b x.py:3 c"
    assert len(one_line("word " * 100)) == 300
    assert reason_of("no rule to read f in module 'a.b' (B) as paths") == "no rule to read f (B) as paths"


def test_the_page_shows_every_row():
    text = page(TYPED, {"torch": "9.9", "timm": "8.8", "python": "7.7"})
    lines = text.splitlines()
    assert "The rows are of torch 9.9, timm 8.8." in text
    assert "| `px` | 2 | 0 | 0 | 1 | 1 | 66.6 % | 0 |" in lines
    assert "| `magnitude` | 1 | 0 | 0 | 0 | 0 | 100.0 % | 1 |" in lines
    assert "| architecture | side | million parameters | `magnitude` | `synflow` | `px` |" in lines
    assert "| `timm:test_resnet` | 32 | 0.4 | ok, 3 dead |  | ok |" in lines
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
    assert PAGE.read_text(encoding="utf-8") == page(read_rows(), about), "run python scripts/zoo.py --page"


@committed
def test_the_committed_rows_of_an_architecture_are_complete():
    there = {(row.model, row.scorer): row.rounds for row in read_rows()}
    models, known = {model for model, _ in there}, pathex.methods()
    for architecture in catalogue():
        if architecture.model not in models:
            continue  # the page says how many are missing
        for name, rounds in plan(architecture, known).items():
            assert there.get((architecture.model, name)) == rounds, (architecture.model, name)


@committed
def test_the_committed_rows_show_what_they_must():
    rows = read_rows()
    for name in ("px", "magnitude", "random", "snip", "grasp", "ntk-diagonal"):
        good, every = shares(rows)[name]
        assert good >= (0.97 * every if name == "px" else every) and every >= 315, name
    # An error of pathex's own that says why, such as training steps that diverge, is no defect.
    errors = [row for row in rows if row.outcome == "error" and not row.message.startswith("PathexError: ")]
    assert [(row.model, row.scorer, row.message) for row in errors if row.scorer != "px"] == []
