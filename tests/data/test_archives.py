import numpy as np
import pytest
import torch

from pathex.data import load
from pathex.errors import InvalidInput


@pytest.fixture
def archive(tmp_path):
    def write(arrays):
        np.savez(tmp_path / "set.npz", **arrays)
        return f"npz:{tmp_path / 'set.npz'}"

    return write


def test_colour(archive, arrays):
    data = load(archive({**arrays, "val_images": np.zeros(1)}))
    assert (data.num_classes, data.classes, data.in_channels, data.image_size) == (3, ("0", "1", "2"), 3, 8)
    assert torch.equal(data.train.images(torch.tensor([4]))[0, 2], torch.from_numpy(arrays["train_images"][4, :, :, 2]))
    assert data.train.labels.tolist() == [0, 1, 2] * 4
    assert data.train.labels.dtype == torch.int64
    assert len(data.test) == 6
    scaled = arrays["train_images"] / 255
    torch.testing.assert_close(data.mean, torch.from_numpy(scaled.mean((0, 1, 2))).float())
    torch.testing.assert_close(data.std, torch.from_numpy(scaled.std((0, 1, 2))).float())
    normal = data.normalise(data.train.images(torch.arange(12)))
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_grey_and_constant(archive, arrays):
    arrays["train_images"], arrays["test_images"] = np.full((12, 8, 8), 51, np.uint8), arrays["test_images"][..., 0]
    data = load(archive(arrays))
    assert (data.in_channels, data.mean.item(), data.std.item()) == (1, pytest.approx(0.2), 1.0)
    for size, augment in ((64, "crop-flip"), (65, "flip")):
        arrays |= {f"{part}_images": np.zeros((n, size, size), np.uint8) for part, n in (("train", 12), ("test", 6))}
        assert load(archive(arrays)).augment == augment


def test_more_classes_than_labels(archive, arrays):
    arrays["train_labels"] = arrays["train_labels"] * 2
    assert load(archive(arrays), num_classes=7).num_classes == 7
    with pytest.raises(InvalidInput, match="reach 4 but only 3 classes have images"):
        load(archive(arrays))
    for value in (0, True, 2.0):
        with pytest.raises(InvalidInput, match=f"'num_classes' .* got {value}"):
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
def test_unusable_contents_are_one_line(archive, arrays, change, message):
    arrays = {key: value for key, value in (arrays | change).items() if value is not None}
    with pytest.raises(InvalidInput, match=message) as caught:
        load(archive(arrays))
    assert "\n" not in str(caught.value)


def test_unusable_files(archive, arrays, tmp_path):
    with pytest.raises(InvalidInput, match="no such file"):
        load(f"npz:{tmp_path / 'absent.npz'}")
    name = archive(arrays)
    file = tmp_path / "set.npz"
    whole = file.read_bytes()
    np.save(tmp_path / "single.npy", np.zeros(3))
    single = (tmp_path / "single.npy").read_bytes()
    member = bytearray(whole)
    member[400:420] = bytes(20)
    newer = bytearray(whole)
    newer[whole.index(b"PK\x01\x02") + 6] = 255  # the version of zip that its reader must know
    for content in (b"", b"text", whole[: len(whole) // 2], bytes(member), bytes(newer), single):
        file.write_bytes(content)
        with pytest.raises(InvalidInput, match="not a readable npz file"):
            load(name)
