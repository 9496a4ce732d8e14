"""``pathex bench`` and ``pathex export``: a network of a run or by name, and what they refuse."""

import shutil
import sys

import pandas as pd
import pytest
import torch

import pathex
from pathex.experiments.runs import RunConfig, run
from pathex.masks import read_mask

OWN = ("--model", "resnet20", "--model-options.width", "2", "--in-channels", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = RunConfig(
        method="magnitude", sparsity=0.5, model_options={"width": 2}, data_options={"classes": [0, 1]}, epochs=1,
        out=str(tmp_path_factory.mktemp("runs")), images_per_class=1,
    )  # fmt: skip
    return run(config).folder


def test_bench_tells_what_a_run_costs(command, folder, monkeypatch):
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    code, out, _ = command("bench", str(folder), "--batch-size", "[1, 2]", "--rounds", "1", "--image-size", "8")
    assert code == 0 and out.splitlines()[-1] == "bench"
    rows = pd.read_csv("bench/latency.csv")
    assert rows.groupby("batch_size")["engine"].count().to_dict() == {1: 7, 2: 7}
    measured = rows[rows["milliseconds"].notna()]
    assert {*measured["engine"]} >= {"torch", "torch, channels last", "compact"} and (
        measured["difference"] < 1e-4
    ).all()
    assert (rows["kept"] < rows["parameters"]).all() and (rows["sparse_bytes"] < rows["bytes"]).all()
    assert pd.read_csv("bench/layers.csv")["weights"].sum() == rows["parameters"][0] - sum(
        parameter.numel() for parameter in pathex.load_run(folder).parameters() if parameter.dim() == 1
    )
    assert "openvino is not installed" in out and "no C++ compiler" in out


def test_export_writes_the_network_that_was_named(command):
    torch.manual_seed(0)
    network = pathex.models.create("resnet20", 10, 1, width=2).eval()
    x = torch.randn(4, 1, 8, 8)
    mask = pathex.prune(network, "random", sparsity=0.9, data=x).mask
    mask.save("m.safetensors")
    torch.save(network.state_dict(), "w.pt")
    words = (*OWN, "--weights", "w.pt", "--mask", "m.safetensors", "--image-size", "8")
    code, out, _ = command("export", *words, "--format", "pt2")
    assert code == 0 and out.splitlines()[-1] == "network.pt2"
    wanted = pathex.make_permanent(network, mask)(x)
    torch.testing.assert_close(torch.export.load("network.pt2").module()(x), wanted, rtol=1e-4, atol=1e-4)
    code, _, _ = command("export", *words, "--format", "safetensors", "--out", "n.safetensors")
    assert code == 0
    small = pathex.compaction.load("n.safetensors", network)
    torch.testing.assert_close(small(x), wanted, rtol=1e-4, atol=1e-4)
    code, _, _ = command("export", *words, "--format", "safetensors", "--compact", "false")
    assert code == 0 and read_mask("network.safetensors") == mask


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bench",), "no network given; for instance: pathex bench RUN-FOLDER"),
        (("export", "nowhere"), "no such folder: nowhere"),
        (("bench", *OWN), "--image-size is not given; allowed: the side of the images in pixels"),
        (("export", ".", "--weights", "w.pt"), "a run has its weights, mask and model options"),
        (("bench", *OWN, "--batch-size", "0"), "--batch-size is 0; allowed: whole numbers from 1"),
        (("bench", *OWN, "--threads", "[1, -1]"), r"--threads is (1, -1); allowed: whole numbers from 1"),
        (("export", *OWN, "--out", "n.tflite"), "--out 'n.tflite' must end in .onnx, the format"),
        (
            ("export", *OWN, "--out", "nowhere/n.onnx"),
            "'nowhere/n.onnx' must name a file in a folder that exists",
        ),
        (("export", *OWN, "--format", "tflite"), "--format is 'tflite'; allowed: onnx, pt2, safetensors"),
    ],
)
def test_what_bench_and_export_refuse(command, words, message):
    code, _, err = command(*words)
    assert code == 2 and message in err and err.count("\n") == 1
