import gzip
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pathex.data import ArraySplit, ImageData, Split, load
from pathex.data.images import channel_statistics
from pathex.data.source import Source, finish
from refusals import refused
from small_images import write_images

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_fashion_mini.py"
ORIGINAL = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def arrays(tmp_path):
    """Arrays of a valid archive: 3 classes, 12 + 6 colour images of 8 pixels."""
    write_images(tmp_path / "valid.npz", train=12, test=6, classes=3)
    with np.load(tmp_path / "valid.npz") as file:
        return dict(file)


@pytest.fixture
def archive(tmp_path):
    def write(arrays):
        np.savez(tmp_path / "set.npz", **arrays)
        return f"npz:{tmp_path / 'set.npz'}"

    return write


def test_colour_grey_constant_and_more_classes_than_labels(archive, arrays):
    data = load(archive({**arrays, "val_images": np.zeros(1)}))
    assert (data.num_classes, data.classes, data.in_channels, data.image_size) == (3, ("0", "1", "2"), 3, 8)
    assert torch.equal(data.train.images(torch.tensor([4]))[0, 2], torch.from_numpy(arrays["train_images"][4, :, :, 2]))
    assert data.train.labels.tolist() == [0, 1, 2] * 4
    assert data.train.labels.dtype == torch.int64
    assert len(data.test) == 6
    scaled = arrays["train_images"] / 255
    torch.testing.assert_close(data.mean, torch.from_numpy(scaled.mean((0, 1, 2))).float())
    torch.testing.assert_close(data.std, torch.from_numpy(scaled.std((0, 1, 2))).float())
    arrays["train_images"], arrays["test_images"] = np.full((12, 8, 8), 51, np.uint8), arrays["test_images"][..., 0]
    data = load(archive(arrays))
    assert (data.in_channels, data.mean.item(), data.std.item()) == (1, pytest.approx(0.2), 1.0)
    for size, augment in ((64, "crop-flip"), (65, "flip")):
        arrays |= {f"{part}_images": np.zeros((n, size, size), np.uint8) for part, n in (("train", 12), ("test", 6))}
        assert load(archive(arrays)).augment == augment
    arrays["train_labels"] = arrays["train_labels"] * 2
    assert load(archive(arrays), num_classes=7).num_classes == 7
    with refused("reach 4 but only 3 classes have images"):
        load(archive(arrays))
    for value in (0, True, 2.0):
        with refused(f"'num_classes' .* got {value}"):
            load(archive(arrays), num_classes=value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": None, "test_labels": None}, "lacks train_images, test_labels. Needed: train_images, "),
        ({"train_images": np.zeros((12, 8, 8))}, r"train_images must be uint8 .* got float64 \(12, 8, 8\)"),
        ({"train_images": np.zeros((12, 64), np.uint8)}, r"got uint8 \(12, 64\)"),
        ({"train_images": np.zeros((12, 8, 9), np.uint8)}, "H = W"),
        ({"train_images": np.zeros((12, 3, 8, 8), np.uint8)}, r"\(N, H, W\[, C\]\).* got \(12, 3, 8, 8\)"),
        ({"train_images": np.zeros((12, 8, 8, 8), np.uint8)}, "C at most 4"),
        ({"test_images": np.zeros((0, 8, 8, 3), np.uint8)}, "test_images is empty"),
        ({"test_images": np.zeros((6, 9, 9, 3), np.uint8)}, "differ in shape"),
        ({"test_images": np.zeros((5, 8, 8, 3), np.uint8)}, "5 test_images but 6 test_labels"),
        ({"train_labels": np.zeros(12)}, r"must be integers \(N,\) or \(N, 1\), got float64"),
        ({"train_labels": np.zeros((12, 14), np.uint8)}, r"got uint8 \(12, 14\)"),
        ({"train_labels": np.arange(12) - 1}, "train_labels must be class numbers from 0 on, got -1"),
        ({"train_labels": np.full(12, 2**63 + 1, np.uint64)}, "got 9223372036854775809"),
        ({"train_labels": np.array([10**9] * 12)}, "reach 1000000000 but only 1 classes"),
        ({"test_labels": np.array([0, 1, 2, 3, 0, 0])}, r"test_labels must lie in 0..2, got 3"),
        ({"train_labels": np.array([{}] * 12, object)}, "allow_pickle=False"),
    ],
)
def test_unusable_contents(archive, arrays, change, message):
    arrays = {key: value for key, value in (arrays | change).items() if value is not None}
    with refused(message):
        load(archive(arrays))


def test_unusable_files(archive, arrays, tmp_path):
    with refused("no such file"):
        load(f"npz:{tmp_path / 'absent.npz'}")
    name, file = archive(arrays), tmp_path / "set.npz"
    whole = file.read_bytes()
    np.save(tmp_path / "single.npy", np.zeros(3))
    member, newer = bytearray(whole), bytearray(whole)
    member[400:420] = bytes(20)
    newer[whole.index(b"PK\x01\x02") + 6] = 255  # the version of zip that its reader must know
    single = (tmp_path / "single.npy").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], bytes(member), bytes(newer), single):
        file.write_bytes(content)
        with refused("not a readable npz file"):
            load(name)


def split_of(count):
    images = torch.randint(0, 256, (count, 2, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[:, 1] //= 2
    return ArraySplit(images, torch.arange(count) % 2)


@pytest.mark.parametrize("count", [1, 1024, 2500])
def test_statistics_over_several_chunks_in_any_order(count):
    split = split_of(count)
    found = channel_statistics(split)
    scaled = split.data.double() / 255
    torch.testing.assert_close(found[0], scaled.mean((0, 2, 3)).float())
    torch.testing.assert_close(found[1], scaled.std((0, 2, 3), correction=0).float())
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    shuffled = channel_statistics(ArraySplit(split.data[order], split.labels[order]))
    assert all(torch.equal(*pair) for pair in zip(found, shuffled, strict=True))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_data_set_knows_its_images_and_normalises_them_where_they_are(device):
    split = split_of(6)
    data = finish(Source("random", split, split, ("even", "odd")))
    assert isinstance(split, Split) and isinstance(data, ImageData)
    assert (data.num_classes, data.in_channels, data.image_size, data.augment) == (2, 2, 3, "crop-flip")
    there = ArraySplit(split.data.to(device), split.labels).images(torch.tensor([3, 0, 3]))
    assert there.device.type == data.normalise(there).device.type == device
    assert torch.equal(there.cpu(), split.data[[3, 0, 3]])
    torch.testing.assert_close(data.normalise(there).cpu(), data.normalise(split.data[[3, 0, 3]]))


def embedded(monkeypatch, source, out):
    """What the script makes of the original's files."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(source), "--out", str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    with np.load(out) as archive:
        return dict(archive)


def test_the_same_file_every_time_balanced_without_repeats_and_with_the_right_labels(monkeypatch, tmp_path):
    for stem, count in (("train", 6000), ("t10k", 1200)):
        images = np.zeros((count, 28, 28), np.uint8)
        images.reshape(count, -1)[:, :4] = np.arange(count, dtype="<u4")[:, None].view(np.uint8)  # its number
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, header, array in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            content = gzip.compress(bytes(header) + array.tobytes(), 1)
            (tmp_path / f"{stem}-{kind}-ubyte.gz").write_bytes(content)
    embedded(monkeypatch, tmp_path, tmp_path / "first.npz")
    arrays = embedded(monkeypatch, tmp_path, tmp_path / "second.npz")
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()
    assert not list(tmp_path.glob("*.tmp*"))
    for part, per_class in (("train", 500), ("test", 100)):
        labels = arrays[f"{part}_labels"]
        numbers = arrays[f"{part}_images"].reshape(len(labels), -1)[:, :4].copy().view("<u4").ravel()
        assert np.bincount(labels).tolist() == [per_class] * 10
        assert (np.diff(numbers.astype(np.int64)) > 0).all()
        assert (numbers % 10 == labels).all()


@pytest.mark.skipif(not ORIGINAL.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_embedded_images_are_what_the_script_makes(monkeypatch, tmp_path):
    arrays, data = embedded(monkeypatch, ORIGINAL, tmp_path / "out.npz"), load("fashion-mini")
    for part, split in (("train", data.train), ("test", data.test)):
        assert (split.data[:, 0].numpy() == arrays[f"{part}_images"]).all()
        assert (split.labels.numpy() == arrays[f"{part}_labels"]).all()
