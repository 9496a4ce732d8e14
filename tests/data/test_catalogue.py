import time
import urllib.error
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from pathex import data
from refusals import refused


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
    both = torch.cat([loaded.train.data, loaded.test.data]).flatten(1)
    assert len(both.unique(dim=0)) == len(both)  # no test image is a training image


def test_names_and_lines():
    sets = ["fashion-mini", "cifar10", "cifar100", "imagenet", "tiny-imagenet", "voc2012"]
    assert data.names() == [*sets, "npz:PATH", "imagefolder:PATH", "hf:NAME_OR_PATH"]
    assert all(data.describe(name) and "\n" not in data.describe(name) for name in data.names())
    assert data.describe("npz:other.npz") == data.describe("npz:PATH")


def test_cifar(monkeypatch, tmp_path):
    roots = []

    def fake(root, train, download):
        roots.append(str(root))
        images = np.full((20, 32, 32, 3), 50 + train, np.uint8)
        return SimpleNamespace(data=images, targets=[*range(10)] * 2, classes=list("abcdefghij"))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    monkeypatch.setenv("PATHEX_ROOT", str(tmp_path / "variable"))
    loaded = data.load("cifar10", root=tmp_path / "option")
    assert (loaded.num_classes, loaded.in_channels, loaded.image_size, loaded.augment) == (10, 3, 32, "crop-flip")
    assert loaded.classes == tuple("abcdefghij")
    assert loaded.test.data.unique().tolist() == [50]
    data.load("cifar10")
    data.load("cifar10", root=tmp_path / "itself" / "cifar-10-batches-py")
    monkeypatch.delenv("PATHEX_ROOT")
    monkeypatch.setenv("HOME", str(tmp_path))
    data.load("cifar10")
    places = ("option", "variable", "itself", ".cache/pathex")
    assert roots == [str(tmp_path / place) for place in places for _ in range(2)]


@pytest.mark.parametrize(
    ("begun", "left"), [(False, ["there"]), (True, ["there", "there/mistyped", "there/mistyped/part"])]
)
def test_a_download_that_fails_leaves_no_folder(monkeypatch, tmp_path, begun, left):
    def fail(root, train, download):
        root.mkdir(parents=True, exist_ok=True)  # as torchvision does, before it asks for the file
        if begun:
            (root / "part").touch()
        raise urllib.error.URLError("no route\nto host")

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fail)
    with refused(r"no route to host.*put cifar-100-python.tar.gz.* use npz:PATH") as caught:
        data.load("cifar100", root=tmp_path / "there" / "mistyped" / ("" if begun else "deeper"))
    assert str(tmp_path) in str(caught.value)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == left


def test_a_path_without_its_form_is_told_how_to_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "images.npz").touch()
    for name, form in (("photos", "imagefolder:photos"), ("images.npz", "npz:images.npz")):
        with refused(f"unknown data '{name}': a path stands behind its form, such as '{form}'"):
            data.load(name)
    with refused("unknown data ''"):
        data.load("")
    with refused("unknown data 'aaa"):
        data.load("a" * 5000)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar11", {}, "unknown data 'cifar11'. Did you mean 'cifar10"),
        ("nzp:file", {}, "unknown data 'nzp:file'"),
        ("npz", {}, "unknown data 'npz'. .*npz:PATH"),
        ("npz:", {}, "needs a path: npz:PATH"),
        ("hf:", {}, "needs a path: hf:NAME_OR_PATH"),
        ("fashion-mini", {"verify": True}, "of data 'fashion-mini': 'verify'. Known: classes, image_size, .*tasks"),
        ("npz:file", {"in_memory": 3}, "Known: classes, image_size, mean, num_classes, std, task, task_seed, tasks"),
        ("voc2012", {"classes": [1]}, "unknown option of data 'voc2012': 'classes'"),
        ("voc2012", {"image_size": 0}, "option 'image_size' of data 'voc2012' must be"),
        ("voc2012", {"mean": [0.5]}, "option 'mean' of data 'voc2012' must be"),
        ("voc2012", {"mean": "abc"}, "option 'mean' of data 'voc2012' must be"),
        ("voc2012", {"mean": [0.5] * 3 + ["a"]}, "option 'mean' of data 'voc2012' must be"),
        ("fashion-mini", {"image_size": 0}, "option 'image_size' of data 'fashion-mini' must be a positive integer"),
        ("fashion-mini", {"mean": 127}, r"option 'mean' .* each of the 1 channels, in \[0, 1\], got 127"),
        ("fashion-mini", {"mean": [0.1, 0.2]}, r"got \[0.1, 0.2\]"),
        ("fashion-mini", {"std": 0}, "option 'std' of data 'fashion-mini'"),
        ("fashion-mini", {"classes": ["Shoe"]}, "data 'fashion-mini': option 'classes': no class 'Shoe'"),
    ],
)
def test_bad_names_and_options(name, options, message):
    with refused(message):
        data.load(name, **options)


def test_networks_see_other_statistics_and_another_size():
    own, half = data.load("fashion-mini"), data.load("fashion-mini", mean=0.5, std=[0.25])
    images = own.test.images(torch.arange(3))
    assert torch.equal(half.normalise(images), (images / 255 - 0.5) / 0.25)
    one, large = data.load("fashion-mini", mean=0.0), data.load("fashion-mini", image_size=56)
    assert (one.mean.item(), one.std.item()) == (0, own.std.item())
    assert (own.image_size, large.image_size, large.train.data.shape[-1]) == (28, 56, 28)
    resized = large.resized(images)
    assert (resized.shape, resized.dtype) == ((3, 1, 56, 56), torch.uint8)
    expected = F.interpolate(images.float(), size=56, mode="bilinear", antialias=True).round() / 255
    # uint8 is resized with weights of whole numbers: within one step of the 256.
    torch.testing.assert_close(large.normalise(images) * large.std + large.mean, expected, rtol=0, atol=1.01 / 255)
    assert data.pruning_set(large, 1, 0).images.shape == (10, 1, 56, 56)
    assert data.load("fashion-mini", image_size=28).size is None
