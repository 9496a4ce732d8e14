import pandas as pd
import pytest

from benchmarks import fewer_rounds
from experiments.sweep.conftest import InProcess
from small_images import write_images


def test_differences_are_taken_in_pairs_of_one_seed():
    rows = pd.DataFrame(
        {
            "case": ["rounds=100"] * 3 + ["rounds=20"] * 3,
            "seed": [0, 1, 2, 2, 1, 0],
            "rounds": [100] * 3 + [20] * 3,
            "seconds": [10.0, 20.0, 30.0, 5.0, 5.0, 5.0],
            "same": [1.0] * 3 + [0.9, 0.8, 0.7],
            "accuracy": [0.5, 0.6, 0.7, 0.72, 0.6, 0.51],
        }
    ).assign(model="m", sparsity=0.9, dead_layers=0, disconnected=0)
    table = fewer_rounds.summary(rows).set_index("case")
    assert table.loc["rounds=20", "faster"] == pytest.approx((30 / 5 + 20 / 5 + 10 / 5) / 3)
    assert table.loc["rounds=20", "same"] == pytest.approx(0.8)
    # 0.01, 0 and 0.02: mean 0.01, deviation 0.01.
    assert table.loc["rounds=20", "difference"] == pytest.approx(0.01)
    assert table.loc["rounds=20", "standard_error"] == pytest.approx(0.01 / 3**0.5, abs=1e-5)
    assert list(table["seeds"]) == [3, 3] and table.loc["rounds=100", "difference"] == 0


def test_the_study_runs_and_goes_on(tmp_path, monkeypatch):
    executors = []

    def create(*_):
        executors.append(InProcess())
        return executors[-1]

    monkeypatch.setattr(fewer_rounds, "create", create)
    words = ["--models", "resnet20:2", "--data", write_images(tmp_path / "tiny.npz"), "--epochs", "1"]
    words += ["--method", "magnitude", "--sparsity", "0.5", "--seeds", "0", "1"]
    case = "pruning_seed=7,rounds=10,images_per_class=5"
    words += ["--cases", case, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "rows.csv")]
    assert fewer_rounds.main(words) == 0 and fewer_rounds.main(words) == 0
    assert [len(each.seen) for each in executors] == [4]
    rows = pd.read_csv(tmp_path / "rows.csv").set_index(["case", "seed"])
    # Neither other images nor fewer rounds move magnitudes.
    assert (rows["same"] == 1).all() and len(rows) == 4
    assert rows.loc[[(case, 1), ("rounds=100", 0)], "rounds"].tolist() == [10, 100]
    table = pd.read_csv(tmp_path / "rows-summary.csv")
    assert (table["difference"] == 0).all() and (table["seeds"] == 2).all()
    assert all((tmp_path / f"rows.{form}").stat().st_size > 1000 for form in ("png", "svg"))
