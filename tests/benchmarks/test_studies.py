import json

import pandas as pd
import pytest
from safetensors.torch import save_file

import pathex
from benchmarks import equal_multiply_adds, fewer_rounds, measure, segmentation
from experiments.sweep.conftest import InProcess
from refusals import refused
from small_images import write_images
from voc_folder import write_voc


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
    monkeypatch.setattr(measure, "create", lambda *_: executors.append(InProcess()) or executors[-1])
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


def test_tickets_of_equal_multiply_adds_are_compared_in_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "create", lambda *_: InProcess())
    words = ["--width", "2", "--data", write_images(tmp_path / "tiny.npz"), "--method", "magnitude", "--rounds", "1"]
    words += ["--epochs", "1", "--shares", "0.5", "--seeds", "0", "1", "--runs", str(tmp_path / "runs")]
    assert equal_multiply_adds.main([*words, "--out", str(tmp_path / "rows.csv")]) == 0
    rows = pd.read_csv(tmp_path / "rows.csv")
    tickets = rows[rows["share"] < 1].set_index(["count", "seed"])
    assert len(rows) == 6 and tickets["multiply_adds"].sub(0.5).abs().max() < 0.02 * 0.5
    table = pd.read_csv(tmp_path / "rows-summary.csv").set_index("count")
    accuracy = tickets["accuracy"]
    found = (accuracy["multiply_adds"] - accuracy["weights"]).mean()
    assert table.loc["weights", "difference"] == pytest.approx(found, abs=1e-5) and table.loc["weights", "seeds"] == 2


# Windows of images that hold one of three classes: the others are named in a warning, as is the new decoder.
few_classes = pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")


@pytest.fixture
def call(tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    write_voc(tmp_path, 6, 2)
    encoder = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None).encoder
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    files = {"root": "", "weights": "encoder.safetensors", "runs": "runs", "out": "out.csv"}
    words = [word for name, file in files.items() for word in (f"--{name}", str(tmp_path / file))]
    words += ["--size", "24", "--crop", "24", "--epochs", "1", "--batch-size", "4"]
    return [*words, "--images-per-class", "1", "--px-rounds", "2"]


def test_runs_differ_in_nothing_but_ticket_and_weights(call):
    given = segmentation.parse([*call, "--seeds", "3", "4", "--mean", "0.5"])
    found = segmentation.configs(given)
    assert len(found) == (4 * 2 + 1) * 2 * 2
    assert {(c.method, c.sparsity) for c in found if c.weights is None} == {
        ("dense", 0.0),
        *((method, sparsity) for method in ("px", "magnitude", "snip", "random") for sparsity in (0.7, 0.9)),
    }
    assert {c.seed for c in found} == {3, 4}
    assert {c.rounds for c in found if c.method == "px"} == {2}
    assert found[0].data_options["mean"] == found[0].data_options["std"] == [0.5] * 3
    assert len({(c.epochs, c.lr, c.head_lr, c.batch_size, c.images_per_class) for c in found}) == 1


@few_classes
def test_rows_are_those_of_the_runs_without_folders_of_the_machine(call, tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation, "LocalExecutor", lambda share: InProcess())
    words = [*call, "--init", "random", "--methods", "magnitude", "--sparsity", "0.5"]
    assert segmentation.main(words) == 0
    row, dense = pd.read_csv(tmp_path / "out.csv").to_dict("records")
    folder = next(path for path in (tmp_path / "runs").iterdir() if path.name.startswith("magnitude-"))
    result = json.loads((folder / "result.json").read_text())
    assert (row["init"], row["method"], row["sparsity"], row["seed"]) == ("random", "magnitude", 0.5, 0)
    assert row["test_miou"] == result["test_miou"] and result["metric"] == "miou"
    assert row["kept"] == round(0.5 * row["total"]) == pathex.Mask.load(folder / "mask.safetensors").kept
    assert (dense["method"], dense["dead_layers"]) == ("dense", 0) and 0 <= dense["test_miou"] <= 1
    about = (tmp_path / "out.json").read_text()
    assert json.loads(about)["settings"]["weights"] == "encoder.safetensors" and str(tmp_path) not in about
    for wrong, message in ((["--methods", "pxx"], "pxx"), (["--epochs", "-1"], "epochs")):
        with refused(message):
            segmentation.main([*call, *wrong])
