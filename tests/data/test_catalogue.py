"""Data sets by name."""

import time
import urllib.error
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision

from pathex import data
from pathex.errors import InvalidInput


def test_embedded_images():
    start = time.perf_counter()
    loaded = data.load("fashion-mini")
    assert time.perf_counter() - start < 5
    assert (len(loaded.train), len(loaded.test)) == (5000, 1000)
    assert loaded.train.labels.bincount().tolist() == [500] * 10
    assert loaded.test.labels.bincount().tolist() == [100] * 10
    assert loaded.train.data.shape[1:] == (1, 28, 28)
    assert (loaded.classes[0], loaded.classes[9]) == ("T-shirt/top", "Ankle boot")
    # Statistics of the whole of Fashion-MNIST.
    assert loaded.mean.item() == pytest.approx(0.2860, abs=0.005)
    assert loaded.std.item() == pytest.approx(0.3530, abs=0.005)


def test_no_test_image_is_a_training_image():
    loaded = data.load("fashion-mini")
    both = torch.cat([loaded.train.data, loaded.test.data]).flatten(1)
    assert len(both.unique(dim=0)) == len(both)


def test_names_and_lines():
    assert data.names() == ["fashion-mini", "cifar10", "cifar100", "imagefolder:PATH", "npz:PATH"]
    assert all(data.describe(name) and "\n" not in data.describe(name) for name in data.names())
    assert data.describe("npz:other.npz") == data.describe("npz:PATH")


@pytest.fixture
def cifar(monkeypatch):
    """A torchvision that has CIFAR without a network, and notes where it was asked to put it."""
    roots = []

    def fake(root, train, download):
        roots.append(str(root))
        images = np.full((20, 32, 32, 3), 50 + train, np.uint8)
        return SimpleNamespace(data=images, targets=[*range(10)] * 2, classes=list("abcdefghij"))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    return roots


def test_cifar(cifar, monkeypatch, tmp_path):
    monkeypatch.setenv("PATHEX_ROOT", str(tmp_path / "variable"))
    loaded = data.load("cifar10", root=tmp_path / "option")
    data.load("cifar10")
    assert (loaded.num_classes, loaded.in_channels, loaded.image_size, loaded.augment) == (10, 3, 32, "crop-flip")
    assert loaded.classes == tuple("abcdefghij")
    assert loaded.test.data.unique().tolist() == [50]
    assert cifar == [str(tmp_path / "option")] * 2 + [str(tmp_path / "variable")] * 2
    monkeypatch.delenv("PATHEX_ROOT")
    monkeypatch.setenv("HOME", str(tmp_path))
    data.load("cifar10")
    assert cifar[-1] == str(tmp_path / ".cache" / "pathex")


def test_cifar_that_cannot_be_downloaded(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fail)
    with pytest.raises(InvalidInput, match=r"no route to host.*put cifar-100-python.tar.gz.* use npz:PATH") as caught:
        data.load("cifar100", root=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar11", {}, "unknown data 'cifar11'. Did you mean 'cifar10"),
        ("nzp:file", {}, "unknown data 'nzp:file'"),
        ("npz", {}, "unknown data 'npz'. .*npz:PATH"),
        ("npz:", {}, "needs a path: npz:PATH"),
        ("fashion-mini", {"image_size": 3}, "unknown option 'image_size' of data 'fashion-mini'. Known: none"),
        ("npz:file", {"image_size": 3}, "Known: num_classes"),
    ],
)
def test_bad_names_and_options(name, options, message):
    with pytest.raises(InvalidInput, match=message):
        data.load(name, **options)


def test_normalise_leaves_its_argument_alone(toy):
    images = torch.full((1, 2, 4, 4), 255.0)
    assert toy.normalise(images)[0, :, 0, 0].tolist() == pytest.approx([1.0, 3.75])
    assert images.eq(255).all()
