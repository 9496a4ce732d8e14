import json
import sys

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import Wired
from model_factories import small
from pathex.errors import InvalidInput, UnknownName, UnsupportedOperation
from pathex.experiments.runs import Preprocessing
from refusals import refused
from snapshots import unchanged

ABOUT = Preprocessing(4, (0.5,), (0.25,), ("cat", "dog"))
COUNTING = Wired(lambda net, x: x.reshape(len(x), -1))
DECIDING = Wired(lambda net, x: x if x.sum() > 0 else -x)
IMAGES = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    made = small().eval()
    made.preprocessing = ABOUT
    return made


def by_onnxruntime(path):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path)
    found = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    return found, [torch.from_numpy(session.run(None, {"images": x.numpy()})[0]) for x in (IMAGES, IMAGES[:2])]


def by_torch(path):
    extra = {"preprocessing.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    return json.loads(extra["preprocessing.json"]), [module(x) for x in (IMAGES, IMAGES[:2])]


@pytest.mark.parametrize(("ending", "read"), [("onnx", by_onnxruntime), ("pt2", by_torch)])
def test_the_file_runs_alone_on_any_number_of_images(network, ending, read, tmp_path):
    if ending == "onnx":
        pytest.importorskip("onnxscript")
    with unchanged(network.train()):
        pathex.compaction.export(network, tmp_path / f"n.{ending}", IMAGES[:1])
    about, outputs = read(tmp_path / f"n.{ending}")
    assert Preprocessing(**{k: tuple(v) if isinstance(v, list) else v for k, v in about.items()}) == ABOUT
    for x, found in zip((IMAGES, IMAGES[:2]), outputs, strict=True):
        torch.testing.assert_close(found, network.eval()(x), rtol=1e-4, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [f"n.{ending}"]


@pytest.mark.parametrize(
    "form", [lambda net, x: x > 0, lambda net, x: x.masked_fill(x > 0, -torch.inf), lambda net, x: x.relu().log() * 0]
)
def test_outputs_of_any_numbers_are_compared(form, tmp_path):
    pathex.compaction.export(Wired(form), tmp_path / "n.pt2", IMAGES[:1])
    assert (tmp_path / "n.pt2").exists()


@pytest.mark.parametrize(
    ("network", "name", "error", "message"),
    [
        (nn.Identity(), "n.tflite", UnknownName, r"'\.tflite'.*\.onnx, \.pt2"),
        (DECIDING, "n.pt2", UnsupportedOperation, "Wired cannot be exported"),
        (COUNTING, "n.pt2", UnsupportedOperation, r"every number of images; does Wired ask for it by len\(x\)"),
        (COUNTING, "n.onnx", UnsupportedOperation, r"every number of images; does Wired ask for it by len\(x\)"),
        (nn.Identity(), "nowhere/n.pt2", InvalidInput, "cannot write"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(network, name, error, message, tmp_path):
    if name == "n.onnx":
        pytest.importorskip("onnxscript")
    with refused(message, error):
        pathex.compaction.export(network, tmp_path / name, torch.randn(1, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[:0], r"must be a tensor \(N, \.\.\.\) with one image or more"),
        ((IMAGES, IMAGES), r"must be a tensor \(N, \.\.\.\) with one image or more"),
        (IMAGES.double(), "Linear fails on images of torch.float64: RuntimeError"),
    ],
)
def test_images_that_a_network_does_not_take(images, message, tmp_path):
    with refused(message):
        pathex.compaction.export(nn.Linear(4, 2), tmp_path / "n.pt2", images)
    assert not list(tmp_path.iterdir())


def test_onnx_names_the_package_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with refused(r"onnxruntime: pip install 'pathex\[onnx\]'"):
        pathex.compaction.export(nn.Identity(), tmp_path / "n.onnx", torch.randn(1, 2))
