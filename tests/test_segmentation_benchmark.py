"""The segmentation experiment: its runs, a row, and what it writes."""

import csv
import json
from importlib import import_module
from pathlib import Path

import pytest
from safetensors.torch import save_file

import pathex
from voc_folder import write_voc

# Windows of images that hold one of three classes: the others are named in a warning, as is the new decoder.
pytestmark = pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")


@pytest.fixture
def script(benchmark_scripts):
    return import_module("segmentation")


@pytest.fixture
def call(tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    write_voc(tmp_path, 6, 2)
    encoder = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None).encoder
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    words = [
        "--root",
        str(tmp_path),
        "--weights",
        str(tmp_path / "encoder.safetensors"),
        "--size",
        "24",
        "--crop",
        "24",
    ]
    words += ["--epochs", "1", "--batch-size", "4", "--images-per-class", "1", "--px-rounds", "2"]
    return [*words, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]


def test_runs_differ_in_nothing_but_ticket_and_weights(script, call):
    given = script._arguments([*call, "--seeds", "3", "4", "--mean", "0.5"])
    found = script.configs(given)
    assert len(found) == (4 * 2 + 1) * 2 * 2
    assert {(c.method, c.sparsity) for c in found if c.weights is None} == {
        ("dense", 0.0),
        *((method, sparsity) for method in ("px", "magnitude", "snip", "random") for sparsity in (0.7, 0.9)),
    }
    assert {c.seed for c in found} == {3, 4}
    assert {c.rounds for c in found if c.method == "px"} == {2}
    assert found[0].data_options["mean"] == found[0].data_options["std"] == [0.5] * 3
    assert len({(c.epochs, c.lr, c.head_lr, c.batch_size, c.images_per_class) for c in found}) == 1


def test_a_row_is_that_of_the_run(script, call):
    given = script._arguments([*call, "--init", "random", "--methods", "px", "--sparsity", "0.5"])
    config = script.configs(given)[0]
    row = script.row_of(config)
    folder = next(Path(given.runs).iterdir())
    result = json.loads((folder / "result.json").read_text())
    assert (row["init"], row["method"], row["sparsity"], row["seed"]) == ("random", "px", 0.5, 0)
    assert row["test_miou"] == result["test_miou"]
    assert result["metric"] == "miou"
    assert row["kept"] == round(0.5 * row["total"]) == pathex.Mask.load(folder / "mask.safetensors").kept
    assert script.row_of(config) == row  # nothing is done twice


@pytest.mark.slow
def test_rows_and_environment_are_written_without_folders_of_the_machine(script, call, tmp_path, capsys):
    assert script.main([*call, "--init", "pretrained", "--methods"]) == 0
    with (tmp_path / "out" / "rows.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["init"], row["method"], row["dead_layers"]) == ("pretrained", "dense", "0")
    assert 0 <= float(row["test_miou"]) <= 1
    about = (tmp_path / "out" / "environment.json").read_text()
    assert json.loads(about)["settings"]["weights"] == "encoder.safetensors"
    assert str(tmp_path) not in about
    for wrong, message in ((["--methods", "pxx"], "pxx"), (["--epochs", "-1"], "epochs"), (["--jobs", "0"], "--jobs")):
        with pytest.raises(SystemExit, match="2"):
            script.main([*call, *wrong])
        assert message in capsys.readouterr().err
