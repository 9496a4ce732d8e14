import os

import numpy as np
import pytest
import torch
from PIL import Image

from damage import spoil
from pathex.data import load
from pathex.errors import InvalidInput, PathexWarning
from voc_folder import write_voc

SUBSET = "ignore:data 'voc2012'.*published:pathex.errors.PathexWarning"


@pytest.fixture
def base(tmp_path):
    return write_voc(tmp_path, 5, 2)


@pytest.mark.filterwarnings(SUBSET)
def test_pairs_are_those_of_the_lists(base, tmp_path):
    data = load("voc2012", root=tmp_path)
    assert (len(data.train), len(data.test), data.num_classes, data.in_channels) == (5, 2, 21, 3)
    assert data.classes[0] == "background"
    assert data.classes[15] == "person"
    image, labels = data.train.sample(3)
    with Image.open(base / "JPEGImages" / "train_003.jpg") as opened:
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(opened))
    assert set(labels.unique().tolist()) == {0, 1, 255}  # turns of classes 1, 2, 3
    with Image.open(base / "SegmentationClass" / "train_003.png") as opened:
        np.testing.assert_array_equal(labels.numpy(), np.asarray(opened))
    assert data.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    half = load("voc2012", root=tmp_path, mean=[0.5] * 3, std=[0.5] * 3, image_size=15, verify=False)
    assert half.test.sample(0)[0].shape == (3, 15, 20)
    assert half.std.tolist() == [0.5] * 3
    assert load("voc2012", root=tmp_path, mean=0.5, std=0.25).std.tolist() == [0.25] * 3
    ramp = np.linspace(0, 65535, 30 * 40).reshape(30, 40).astype(np.uint16)  # 16 bits keep their brightness
    Image.fromarray(ramp).save(base / "JPEGImages" / "train_003.jpg", format="PNG")
    image, _ = load("voc2012", root=tmp_path).train.sample(3)
    np.testing.assert_array_equal(image.numpy(), np.stack([ramp // 256] * 3))


@pytest.mark.filterwarnings(SUBSET)
@pytest.mark.parametrize("inside", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_folder_itself_or_one_that_holds_it(base, tmp_path, monkeypatch, inside):
    monkeypatch.setattr("torchvision.datasets.voc.download_and_extract_archive", lambda *_, **__: pytest.fail("net"))
    data = load("voc2012", root=tmp_path / inside)
    assert data.train.image_files[3] == str(base / "JPEGImages" / "train_003.jpg")
    assert data.train.label_files[3] == str(base / "SegmentationClass" / "train_003.png")


def test_fewer_images_than_published_are_mentioned(base, tmp_path):
    with pytest.warns(PathexWarning, match=r"5 \+ 2 images, published 1464 \+ 1449"):
        load("voc2012", root=tmp_path)


LISTS = "ImageSets/Segmentation/"
THREE = " ".join(f"JPEGImages/train_00{number}.jpg" for number in (1, 2, 4))


@pytest.mark.filterwarnings(SUBSET)
@pytest.mark.parametrize(
    ("paths", "content", "message", "seen_in_headers"),
    [
        ("JPEGImages/train_001.jpg", None, r"train_001.jpg' is missing$", True),
        ("SegmentationClass/val_000.png", None, r"val_000.png' is missing$", True),
        (THREE, None, r"train_001.jpg' is missing \(and 2 more of 5 pairs cannot be used\)", True),
        ("JPEGImages/train_002.jpg", "<html>", r"train_002.jpg' cannot be read \(UnidentifiedImageError", True),
        ("SegmentationClass/train_002.png", "", r"train_002.png' cannot be read", True),
        ("JPEGImages/train_004.jpg", 60, r"train_004.jpg' cannot be read \(OSError.*truncated", False),
        ("SegmentationClass/train_004.png", 60, r"train_004.png' cannot be read", True),
        ("SegmentationClass/train_000.png", (28, 40, 1), r"is 40 x 30 and its label map 40 x 28 pixels", True),
        ("SegmentationClass/train_000.png", (30, 40, 21), r"0.png' holds label 21; allowed: 0 to 20, and 255", False),
        (LISTS + "val.txt", None, r"the list '.*val.txt' cannot be read \(FileNotFoundError\)", True),
        (LISTS + "train.txt", "", r"the list '.*train.txt' is empty", True),
        (LISTS + "val.txt", "val_000\ntrain_003\n", r"'train_003' is in both lists", True),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(base, tmp_path, paths, content, message, seen_in_headers):
    for path in paths.split():
        if isinstance(content, tuple):
            *size, label = content
            Image.fromarray(np.full(size, label, dtype=np.uint8)).save(base / path)
        else:
            spoil(base / path, content)
    with pytest.raises(InvalidInput, match=message) as caught:
        load("voc2012", root=tmp_path)
    assert "\n" not in str(caught.value)
    if seen_in_headers:
        with pytest.raises(InvalidInput, match=message):
            load("voc2012", root=tmp_path, verify=False)
    else:
        load("voc2012", root=tmp_path, verify=False)


def test_a_failed_download_says_what_is_needed(tmp_path, monkeypatch):
    asked = []

    def fail(url, root, filename, md5):
        asked.append((url, filename, md5))
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.voc.download_and_extract_archive", fail)
    needed = r"\(OSError: no route to host\); there is no folder 'VOCdevkit/VOC2012' in .*: put"
    with pytest.raises(InvalidInput, match=needed):
        load("voc2012", root=tmp_path / "new")
    assert not list(tmp_path.iterdir())  # the folder made for the download is gone
    ((url, archive, checksum),) = asked
    assert url.startswith("https://")
    assert (archive, checksum) == ("VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd")


@pytest.mark.data
@pytest.mark.filterwarnings(SUBSET)
@pytest.mark.skipif("PATHEX_DATA" not in os.environ, reason="PATHEX_DATA is not set")
def test_the_subset_of_the_original():
    data = load("voc2012", root=os.environ["PATHEX_DATA"])
    assert (len(data.train), len(data.test)) == (70, 40)
    image, labels = data.train.sample(0)
    assert image.shape[1:] == labels.shape
    seen = torch.cat([data.test.labels(number).flatten().unique() for number in range(40)]).unique()
    assert seen.tolist() == [0, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 255]
