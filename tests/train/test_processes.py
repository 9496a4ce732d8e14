import json
import multiprocessing
import subprocess
import sys

import pytest
import torch
import yaml

from experiments.runs.outcomes import WITH_TESTS, entries, state_of
from pathex.cli import main
from pathex.experiments.runs import RunConfig, run
from small_images import write_images

TORCHRUN = (sys.executable, *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"), "-m", "pathex")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A network without batch statistics, and 34 images in batches of 7: the last batch has six, which two share."""
    shape = {"method": "px", "sparsity": 0.5, "rounds": 3, "model": "model_factories:plain", "images_per_class": 2}
    training = {"epochs": 3, "batch_size": 7, "validation": 0.2, "lr": 0.05, "augment": "crop-flip"}
    data = write_images(tmp_path_factory.mktemp("processes") / "tiny.npz", train=34, test=9, val=5)
    return {**shape, **training, "data": data, "precision": "64-true", "device": "cpu"}


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    return run(RunConfig(**settings, out=str(tmp_path_factory.mktemp("alone")))).folder


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["pathex", "torchrun"])
def test_two_processes_have_the_mask_and_the_curve_of_one(settings, alone, tmp_path, launcher, capfd):
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump({**settings, "devices": 2, "out": str(tmp_path / "runs")}))
    words = ("run", "--config", str(config))
    if launcher:
        subprocess.run([*launcher, *words], env=WITH_TESTS | {"OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    else:
        assert main(words) == 0
    (pair,) = (tmp_path / "runs").iterdir()
    assert capfd.readouterr().out.splitlines() == [str(pair)]  # one of them speaks
    assert (pair / "mask.safetensors").read_bytes()[-64:] == (alone / "mask.safetensors").read_bytes()[-64:]
    assert json.loads((pair / "environment.json").read_text())["processes"] == 2
    for one, two in zip(entries(alone / "metrics.jsonl"), entries(pair / "metrics.jsonl"), strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-6)  # of outputs in float32
        for name in ("epoch", "train_accuracy", "val_accuracy", "lr"):
            assert one[name] == two[name]
    first, second = (state_of(folder / "last.ckpt") for folder in (alone, pair))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-12)
    results = [json.loads((folder / "result.json").read_text()) for folder in (alone, pair)]
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]
    assert results[1]["test_images"] == 9


def test_an_error_is_one_line_and_leaves_no_process(tmp_path, capfd):
    words = ("--devices", "2", "--device", "cpu", "--out", str(tmp_path / "runs"))
    assert main(["run", *words, "--data", f"npz:{tmp_path / 'none.npz'}"]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "none.npz" in error
    assert not (tmp_path / "runs").exists() and not multiprocessing.active_children()
