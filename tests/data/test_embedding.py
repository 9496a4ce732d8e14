import gzip
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from pathex.data import load

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_fashion_mini.py"
ORIGINAL = Path("/usr/share/datasets/fashion-mnist")


def run(monkeypatch, source, out):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(source), "--out", str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    with np.load(out) as archive:
        return {key: archive[key] for key in archive.files}


@pytest.fixture
def source(tmp_path):
    """Files of the original's form: 6,000 + 1,200 images whose four first pixels hold their number."""
    for stem, count in (("train", 6000), ("t10k", 1200)):
        images = np.zeros((count, 28, 28), np.uint8)
        images.reshape(count, -1)[:, :4] = np.arange(count, dtype="<u4")[:, None].view(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes(), 1))
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes(), 1))
    return tmp_path


def test_the_same_file_every_time_balanced_without_repeats_and_with_the_right_labels(monkeypatch, source, tmp_path):
    run(monkeypatch, source, tmp_path / "first.npz")
    arrays = run(monkeypatch, source, tmp_path / "second.npz")
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
    arrays, data = run(monkeypatch, ORIGINAL, tmp_path / "out.npz"), load("fashion-mini")
    for part, split in (("train", data.train), ("test", data.test)):
        assert (split.data[:, 0].numpy() == arrays[f"{part}_images"]).all()
        assert (split.labels.numpy() == arrays[f"{part}_labels"]).all()
