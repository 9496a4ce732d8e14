import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from damage import spoil
from pathex.data import ArraySplit, DecodedSplit, load
from pathex.data import imagenet as room
from pathex.errors import InvalidInput, PathexWarning

REAL = pytest.mark.skipif("PATHEX_DATA" not in os.environ, reason="PATHEX_DATA is not set")
SUBSET = pytest.mark.filterwarnings("ignore:data .* is a part of the published images:pathex.errors.PathexWarning")
WNIDS = ("n03", "n01", "n02")  # not in order, as published


def write(path, value, size=(64, 64), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path, format="JPEG")


def make_tiny(root):
    """3 classes of 2 + 1 images, whose grey value tells class and number."""
    folder = root / "tiny-imagenet-200"
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(WNIDS))
    lines = []
    for number, wnid in enumerate(sorted(WNIDS)):
        for image in range(2):
            write(folder / "train" / wnid / "images" / f"{wnid}_{image}.JPEG", 40 * number + 10 * image, mode="L")
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("no image")
        write(folder / "val" / "images" / f"val_{2 - number}.JPEG", 40 * number + 20)
        lines.append(f"val_{2 - number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def make_imagenet(root):
    """3 classes of 2 + 1 wide images."""
    for number, wnid in enumerate(WNIDS):
        for image in range(2):
            write(root / "imagenet" / "train" / wnid / f"{image}.JPEG", 40 * number + image, (90, 60))
        write(root / "imagenet" / "val" / wnid / "val.JPEG", 40 * number + 20, (90, 60))
    return root / "imagenet"


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path)


@pytest.fixture
def imagenet(tmp_path):
    return make_imagenet(tmp_path)


@SUBSET
@pytest.mark.parametrize("inside", [False, True])
def test_tiny_layout(tiny, inside):
    data = load("tiny-imagenet", root=tiny if inside else tiny.parent)
    assert data.classes == ("n01", "n02", "n03")
    assert isinstance(data.train, ArraySplit)
    assert data.train.data.shape == (6, 3, 64, 64)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.train.data[:, 0, 0, 0].tolist() == pytest.approx([0, 10, 40, 50, 80, 90], abs=1)
    assert data.test.labels.tolist() == [0, 1, 2]
    assert data.test.data[:, 2, 5, 5].tolist() == pytest.approx([20, 60, 100], abs=1)
    assert (data.augment, data.augment_options) == ("resized-crop", {"min_scale": 0.1, "max_ratio": 1.25})
    assert data.image_size == 64


def test_a_subset_is_a_warning(tiny, imagenet):
    message = (
        "'tiny-imagenet' in .* is a part of .*: down to 2 train images in a class, down to 1 val images in a class;"
    )
    with pytest.warns(PathexWarning, match=message) as caught:
        load("tiny-imagenet", root=tiny)
    assert caught[0].filename == __file__
    with pytest.warns(PathexWarning, match=r"6 train images, 3 val images; published: 1,281,167 train and 50,000 val"):
        load("imagenet", root=imagenet)


TABLE = "val/val_annotations.txt"
TWO = "train/n02/images/n02_0.JPEG val/images/val_1.JPEG"


@SUBSET
@pytest.mark.parametrize(
    ("name", "path", "content", "message"),
    [
        ("tiny-imagenet", "wnids.txt", None, "no file 'wnids.txt'"),
        ("tiny-imagenet", "wnids.txt", " ", "wnids.txt' is empty"),
        ("tiny-imagenet", "train", None, "no folder 'train'"),
        ("tiny-imagenet", "val/images", None, "no folder 'val/images'"),
        ("tiny-imagenet", "train/n03 train/n01", None, "no folder 'n01' .*; 2 of 3 classes"),
        ("tiny-imagenet", "train/n04/notes.txt", "", "class 'n04' of 'train' is no class"),
        ("tiny-imagenet", "train/n02/images", None, "class 'n02' has no image in .*; 1 of 3 classes"),
        ("tiny-imagenet", TABLE, None, "no file 'val_annotations.txt'"),
        ("tiny-imagenet", "val/images/val_0.JPEG", None, "val_0.JPEG' is missing; 1 such images"),
        ("tiny-imagenet", "val/images/val_9.JPEG", "", "val_9.JPEG' has no line in val_annotations.txt"),
        ("tiny-imagenet", TABLE, "val_0.JPEG\tn09\n", "line 1 of .* 'val_0.JPEG"),
        ("tiny-imagenet", TABLE, "val_0.JPEG n01\n", "line 1 of"),
        ("tiny-imagenet", TABLE, "val_0.JPEG\tn01\nval_0.JPEG\tn02\n", "line 2 of .* no new image"),
        ("tiny-imagenet", TWO, "", r"n02_0.JPEG' cannot be read .*; 2 of 9 images"),
        ("imagenet", ".", None, r"no folder 'train' in .* It is not downloaded: register at https://image-net.org"),
        ("imagenet", "val", None, "no folder 'val' in"),
        ("imagenet", "val/n02", None, "no folder 'n02' in .*val'; 1 of 3 classes"),
        ("imagenet", "val/n07/notes.txt", "", "class 'n07' of 'val' is no class of 'train'"),
        ("imagenet", "train/n07/notes.txt val/n07/notes.txt", "", "class 'n07' has no image in"),
        ("imagenet", "val/n02/val.JPEG", "", "n02/val.JPEG' cannot be read .*; 1 of 9 images"),
        ("imagenet", "train/n02/1.JPEG", "<html>", "n02/1.JPEG' cannot be read .*; 1 of 9 images"),
    ],
)
def test_what_is_incomplete_or_damaged(tmp_path, name, path, content, message):
    folder = (make_imagenet if name == "imagenet" else make_tiny)(tmp_path)
    for each in path.split():
        spoil(folder / each, content)
    with pytest.raises(InvalidInput, match=message) as caught:
        load(name, root=tmp_path)
    assert str(caught.value).startswith(f"data {name!r}") and "\n" not in str(caught.value)


@SUBSET
def test_tiny_is_downloaded_once(tmp_path, monkeypatch):
    source = make_tiny(tmp_path / "server")
    archive = tmp_path / "server" / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(source.rglob("*")):
            file.write(path, path.relative_to(source.parent))

    def download(url, root, filename, md5):
        (Path(root) / filename).write_bytes(archive.read_bytes())
        if hashlib.md5(archive.read_bytes()).hexdigest() != md5:
            raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    home = tmp_path / "home"
    with pytest.raises(InvalidInput, match=r"cannot be downloaded .*; put tiny-imagenet-200.zip, or its folder"):
        load("tiny-imagenet", root=home)  # another checksum
    assert not (home / "tiny-imagenet-200").exists()
    monkeypatch.setattr(room, "_TINY_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("PATHEX_ROOT", str(home))
    first = load("tiny-imagenet")
    assert sorted(path.name for path in home.iterdir()) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]
    archive.unlink()
    (home / "tiny-imagenet-200.zip").unlink()
    assert torch.equal(load("tiny-imagenet").train.data, first.train.data)


@SUBSET
@pytest.mark.parametrize("inside", [False, True])
def test_imagenet_layout(imagenet, inside):
    data = load("imagenet", root=imagenet if inside else imagenet.parent)
    assert data.classes == ("n01", "n02", "n03")
    assert isinstance(data.train, DecodedSplit)
    assert (data.train.image_size, data.train.resize, data.image_size) == (224, 256, 224)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.train.images(torch.arange(6))[:, 0, 0, 0].tolist() == pytest.approx([40, 41, 80, 81, 0, 1], abs=1)
    assert data.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert data.std.tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert data.augment_options == {"min_scale": 0.2, "grayscale": 0.2, "jitter": 0.4, "hue": 0.4}
    small = load("imagenet", root=imagenet, image_size=28)
    assert (small.train.image_size, small.test.resize) == (28, 32)
    assert load("imagenet", root=imagenet, image_size=28, resize=28).test.resize == 28


@SUBSET
def test_an_image_that_breaks_off_is_found_on_request(imagenet):
    file = imagenet / "train" / "n03" / "1.JPEG"
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(file)
    spoil(file, 2000)
    load("imagenet", root=imagenet)
    with pytest.raises(InvalidInput, match=r"n03/1.JPEG' cannot be read .* 1 of 9 images"):
        load("imagenet", root=imagenet, verify=True)


def digests(split):
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in split.images(torch.arange(len(split)))]


@pytest.mark.data
@REAL
@SUBSET
def test_the_real_tiny_imagenet():
    data = load("tiny-imagenet", root=os.environ["PATHEX_DATA"])
    assert (len(data.train), len(data.test), data.num_classes) == (3000, 1000, 200)
    assert (data.train.labels.bincount() == 15).all()
    # Mean and deviation that are published for the whole; the subset's are within 2 %.
    assert data.mean.tolist() == pytest.approx([0.480, 0.448, 0.397], abs=0.02)
    assert data.std.tolist() == pytest.approx([0.276, 0.269, 0.282], abs=0.02)
    train, test = digests(data.train), digests(data.test)
    assert not set(train) & set(test)
    root = Path(os.environ["PATHEX_DATA"]) / "tiny-imagenet-200"
    lines = dict(line.split("\t")[:2] for line in (root / "val" / "val_annotations.txt").read_text().splitlines())
    by_content = {}
    for name, wnid in lines.items():
        pixels = np.asarray(Image.open(root / "val" / "images" / name).convert("RGB")).transpose(2, 0, 1)
        by_content[hashlib.sha256(pixels.tobytes()).hexdigest()] = wnid
    assert [by_content[digest] for digest in test] == [data.classes[label] for label in data.test.labels.tolist()]


@pytest.mark.data
@REAL
@SUBSET
def test_tasks_of_the_real_imagenet_share_no_image():
    root = os.environ["PATHEX_DATA"]
    parts = [load("imagenet", root=root, tasks=2, task=task, task_seed=1, image_size=64) for task in (0, 1)]
    assert not set(parts[0].classes) & set(parts[1].classes)
    contents = [set(digests(split)) for data in parts for split in (data.train, data.test)]
    assert [len(content) for content in contents] == [300, 100] * 2
    assert len(set.union(*contents)) == 800


@pytest.mark.data
@REAL
@SUBSET
def test_the_real_imagenet():
    root = Path(os.environ["PATHEX_DATA"])
    data = load("imagenet", root=root, verify=True)
    assert (len(data.train), len(data.test), data.num_classes) == (600, 200, 10)
    assert data.classes == tuple(sorted(path.name for path in (root / "imagenet" / "train").iterdir()))
    chosen = load("imagenet", root=root, classes=[data.classes[7], data.classes[2]])
    for number, old in enumerate((7, 2)):
        rows, old_rows = (
            (labels == label).nonzero() for labels, label in ((chosen.train.labels, number), (data.train.labels, old))
        )
        assert len(rows) == 60
        assert torch.equal(chosen.train.image(int(rows[3])), data.train.image(int(old_rows[3])))
