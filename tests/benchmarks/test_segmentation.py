import csv
import json

import pytest
from safetensors.torch import save_file

import pathex
from benchmarks import segmentation
from experiments.sweep.conftest import InProcess
from pathex.errors import InvalidInput
from voc_folder import write_voc

# Windows of images that hold one of three classes: the others are named in a warning, as is the new decoder.
pytestmark = pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")


@pytest.fixture
def call(tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    write_voc(tmp_path, 6, 2)
    encoder = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None).encoder
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    words = ["--root", str(tmp_path), "--weights", str(tmp_path / "encoder.safetensors")]
    words += ["--size", "24", "--crop", "24", "--epochs", "1", "--batch-size", "4"]
    words += ["--images-per-class", "1", "--px-rounds", "2"]
    return [*words, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out.csv")]


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


def test_rows_are_those_of_the_runs_without_folders_of_the_machine(call, tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation, "LocalExecutor", lambda share: InProcess())
    words = [*call, "--init", "random", "--methods", "magnitude", "--sparsity", "0.5"]
    assert segmentation.main(words) == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        row, dense = csv.DictReader(file)
    folder = next(path for path in (tmp_path / "runs").iterdir() if path.name.startswith("magnitude-"))
    result = json.loads((folder / "result.json").read_text())
    assert (row["init"], row["method"], row["sparsity"], row["seed"]) == ("random", "magnitude", "0.5", "0")
    assert float(row["test_miou"]) == result["test_miou"] and result["metric"] == "miou"
    assert int(row["kept"]) == round(0.5 * int(row["total"])) == pathex.Mask.load(folder / "mask.safetensors").kept
    assert (dense["method"], dense["dead_layers"]) == ("dense", "0") and 0 <= float(dense["test_miou"]) <= 1
    about = (tmp_path / "out.json").read_text()
    assert json.loads(about)["settings"]["weights"] == "encoder.safetensors" and str(tmp_path) not in about
    for wrong, message in ((["--methods", "pxx"], "pxx"), (["--epochs", "-1"], "epochs")):
        with pytest.raises(InvalidInput, match=message):
            segmentation.main([*call, *wrong])
