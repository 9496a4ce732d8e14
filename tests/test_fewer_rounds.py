"""The study of fewer rounds: cases are read, means and differences are right, and a stopped study goes on."""

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from pathex.errors import InvalidInput, UnknownName

pytestmark = pytest.mark.usefixtures("benchmark_scripts")
# Magnitudes need no pass, so that 100 rounds are quick, and never change: an adaptive schedule doubles every step.
TINY = [
    "--models",
    "resnet20:width=1",
    "--limit",
    "200",
    "--method",
    "magnitude",
    "--sparsity",
    "0.5",
    "--seeds",
    "0",
    "1",
]


@pytest.fixture
def study() -> ModuleType:
    return import_module("fewer_rounds")


@pytest.fixture
def results() -> ModuleType:
    return import_module("fewer_rounds_results")


def test_cases_are_read(study: ModuleType) -> None:
    reference = {"images": 100, "set": 0, "dtype": "float32"}
    assert study.parse_case("rounds=100") == (reference, {"rounds": 100})
    assert study.parse_case("images=50,schedule=adaptive:0.02,redraw=true") == (
        {**reference, "images": 50},
        {"rounds": 100, "schedule": "adaptive:0.02", "redraw": True},
    )


def test_the_cases_of_the_study_are_known(study: ModuleType) -> None:
    parsed = [study.parse_case(case) for case in study.CASES]
    assert all(parsed.count(case) == 1 for case in parsed)


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("rounds", InvalidInput, "NAME=VALUE"),
        ("dtype=int8", InvalidInput, "allowed: float32, float64"),
        ("images=some", InvalidInput, "allowed: a whole number"),
        ("schedule=cosine", UnknownName, "adaptive, exponential, linear"),
        ("schedule=adaptive:2", InvalidInput, "tolerance"),
        ("speed=9", InvalidInput, "no option 'speed'"),
    ],
)
def test_wrong_cases_are_refused(study: ModuleType, case: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        study.parse_case(case)


def test_bad_arguments_end_with_2_and_one_line(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--cases", "images=15"], ["--jobs", "0"], ["--cases", "speed=9"]):
        assert study.main([*TINY, *arguments, "--out", str(tmp_path / "rows.csv")]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())


def frame(**columns: list[Any]) -> pd.DataFrame:
    size = len(columns["case"])
    shared = {"model": "m", "data": "d", "train_images": 0, "method": "px", "sparsity": 0.9}
    return pd.DataFrame({**{name: [value] * size for name, value in shared.items()}, **columns})


def test_differences_are_taken_in_pairs_of_one_seed(results: ModuleType) -> None:
    cases, seeds = ["rounds=100"] * 3 + ["rounds=20"] * 3, [0, 1, 2, 2, 1, 0]
    shared: dict[str, Any] = {"case": cases, "seed": seeds}
    pruned = frame(
        **shared, rounds=[100] * 3 + [20] * 3, seconds=[10.0, 20.0, 30.0, 5.0, 5.0, 5.0],
        same=[1.0] * 3 + [0.9, 0.8, 0.7], disconnected=[0] * 6, dead_layers=[0] * 6,
    )  # fmt: skip
    trained = frame(
        **shared, epochs=[5] * 6, batch_size=[64] * 6, lr=[0.1] * 6, accuracy=[0.5, 0.6, 0.7, 0.72, 0.6, 0.51]
    )  # fmt: skip
    table = results.summary(pruned, trained).set_index("case")
    assert table.loc["rounds=20", "faster"] == pytest.approx((30 / 5 + 20 / 5 + 10 / 5) / 3)
    assert table.loc["rounds=20", "same"] == pytest.approx(0.8)
    # 0.01, 0 and 0.02: mean 0.01, deviation 0.01.
    assert table.loc["rounds=20", "difference"] == pytest.approx(0.01)
    assert table.loc["rounds=20", "standard_error"] == pytest.approx(0.01 / 3**0.5, abs=1e-5)
    assert list(table["seeds"]) == [3, 3] and table.loc["rounds=100", "difference"] == 0
    assert "accuracy" not in results.summary(pruned, None)


def test_the_study_runs_and_goes_on(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "rows.csv"
    call = [*TINY, "--epochs", "1", "--out", str(out), "--cases", "set=1", "schedule=adaptive", "rounds=10"]
    trained, train = [], study._train

    def stopping(ticket: Any, *rest: Any) -> Any:
        trained.append(ticket)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(ticket, *rest)

    monkeypatch.setattr(study, "_train", stopping)
    with pytest.raises(KeyboardInterrupt):
        study.main(call)
    assert len(pd.read_csv(out)) == 8 and len(pd.read_csv(tmp_path / "rows-accuracy.csv")) == 2
    monkeypatch.setattr(study, "_prune", lambda *known: pytest.fail("masks are there"))
    assert study.main(call) == 0
    assert len(trained) == 3 + 6 and trained[2] == trained[3]
    rows = pd.read_csv(out).set_index(["case", "seed"])
    # Neither other images nor fewer rounds move magnitudes.
    assert (rows["same"] == 1).all() and (rows["kept"] == round(0.5 * rows["total"].iloc[0])).all()
    assert rows.loc[("schedule=adaptive", 0), "rounds"] == 7 and rows.loc[("rounds=10", 1), "rounds"] == 10
    accuracy = pd.read_csv(tmp_path / "rows-accuracy.csv")
    assert len(accuracy) == 8 and accuracy.groupby("seed")["accuracy"].nunique().eq(1).all()
    table = pd.read_csv(tmp_path / "rows-summary.csv")
    assert (table["difference"] == 0).all() and (table["seeds"] == 2).all()
    (about,) = json.loads((tmp_path / "rows.json").read_text())
    assert about["settings"]["epochs"] == 1 and "torch" in about["environment"]
    assert all((tmp_path / f"rows.{form}").stat().st_size > 1000 for form in ("png", "svg"))


@pytest.mark.slow  # two processes load everything anew
def test_several_processes_give_the_same_masks(study: ModuleType, tmp_path: Path) -> None:
    found = {}
    for jobs in ("1", "2"):
        out = tmp_path / jobs / "rows.csv"
        assert study.main([*TINY, "--jobs", jobs, "--out", str(out), "--cases", "rounds=10"]) == 0
        found[jobs] = {file.name: file.read_bytes() for file in (tmp_path / jobs / "rows-masks").iterdir()}
    assert found["1"] == found["2"] and len(found["1"]) == 4
