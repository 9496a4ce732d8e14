import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision.transforms.v2 import functional as transforms

from damage import spoil
from pathex.data import ArraySplit, DecodedSplit, Split, folders, load
from pathex.errors import PathexWarning
from refusals import refused
from small_images import write_image

pytestmark = pytest.mark.filterwarnings("ignore:data .* is a part of the published:pathex.errors.PathexWarning")
WNIDS = ("n03", "n01", "n02")  # not in order, as published
WHOLE = {"mean": 0, "std": 1, "in_memory": 0}
"""Options with which no image is read as the data are loaded."""


def make_tree(root):
    """Two classes of 3 images, one of which has a test image."""
    for number in range(3):
        write_image(root / "train" / "cat" / f"{number}.png", (number, 0, 0))
        write_image(root / "train" / "ant" / "images" / f"{number}.png", (100 + number, 0, 0))
    write_image(root / "val" / "cat" / "0.png", (10, 20, 30))
    (root / "train" / "cat" / ".notes.jpg").write_text("no image")
    return root


def make_tiny(root):
    """3 classes of 2 + 1 images, whose grey value tells class and number."""
    folder, lines = root / "tiny-imagenet-200", []
    for number, wnid in enumerate(sorted(WNIDS)):
        for image in range(2):
            path = folder / "train" / wnid / "images" / f"{wnid}_{image}.JPEG"
            write_image(path, 40 * number + 10 * image, (64, 64))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("no image")
        write_image(folder / "val" / "images" / f"val_{2 - number}.JPEG", (40 * number + 20,) * 3, (64, 64))
        lines.append(f"val_{2 - number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "wnids.txt").write_text("\n".join(WNIDS))
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def make_imagenet(root):
    """3 classes of 2 + 1 wide images."""
    for number, wnid in enumerate(WNIDS):
        for image in range(2):
            write_image(root / "imagenet" / "train" / wnid / f"{image}.JPEG", (40 * number + image,) * 3, (90, 60))
        write_image(root / "imagenet" / "val" / wnid / "val.JPEG", (40 * number + 20,) * 3, (90, 60))
    return root / "imagenet"


MAKE = {"imagefolder": make_tree, "tiny-imagenet": make_tiny, "imagenet": make_imagenet}


@pytest.fixture
def name(tmp_path):
    return f"imagefolder:{make_tree(tmp_path)}"


@pytest.fixture
def read(monkeypatch):
    """The numbers of the images that are read."""
    numbers, original = [], DecodedSplit.image
    monkeypatch.setattr(DecodedSplit, "image", lambda self, number: numbers.append(number) or original(self, number))
    return numbers


def test_classes_labels_and_pixels_are_the_same_in_memory_and_lazy(tmp_path, name, read):
    data, lazy = load(name), load(name, in_memory=0)
    assert (data.classes, data.image_size) == (("ant", "cat"), 8)
    assert isinstance(data.train, ArraySplit) and isinstance(lazy.train, DecodedSplit) and isinstance(lazy.train, Split)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.data[:, 0, 0, 0].tolist() == [100, 101, 102, 0, 1, 2]
    assert (len(data.test), data.test.labels.tolist()) == (1, [1])
    indices = torch.tensor([4, 0])
    assert torch.equal(lazy.train.images(indices), data.train.images(indices))
    assert torch.equal(lazy.mean, data.mean)
    one = load(name, in_memory=0, classes=["cat"])
    assert (one.classes, one.train.labels.tolist(), len(one.test)) == (("cat",), [0, 0, 0], 1)
    assert torch.equal(one.train.images(torch.arange(3)), lazy.train.images(torch.arange(3, 6)))
    assert one.mean[0] < lazy.mean[0]
    with refused("the chosen classes have no test images"):
        load(name, classes=["ant"])
    read.clear()
    load(name, image_size=8, **WHOLE)
    assert set(read) == {0}  # to see channels and size
    write_image(tmp_path / "test" / "ant" / "0.png", 0)  # test comes before val
    assert load(name).test.labels.tolist() == [0]


def test_short_side_is_resized_and_the_centre_cut_or_what_a_transform_makes_of_the_original(tmp_path, name):
    wide, framed = np.zeros((20, 60, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)
    wide[:, 16:44] = framed[5:35, 5:35] = 200
    file, last = tmp_path / "train" / "cat" / "wide.png", torch.tensor([6])
    write_image(file, wide)
    assert load(name, image_size=10).train.images(last).eq(200).all()
    with pytest.warns(
        PathexWarning, match="not all square and of one size: each is cut to 224 x 224 pixels; .*image_size"
    ):
        lazy = load(name, in_memory=0)
    assert lazy.image_size == 224
    corner = lazy.train.image(6, lambda image: image.crop((0, 0, 15, 20)).resize((10, 10)))
    assert corner.shape == (3, 10, 10) and corner.eq(0).all()
    write_image(file, framed)
    assert load(name, image_size=10, resize=16).train.images(last).eq(200).all()
    assert not load(name, image_size=10).train.images(last).eq(200).all()
    for options, message in (
        ({"image_size": 10, "resize": 9}, r"'resize' of data .* at least image_size=10, got 9"),
        ({"image_size": 0}, "option 'image_size'"),
        ({"in_memory": -1}, "option 'in_memory'"),
    ):
        with refused(message):
            load(name, **options)


def test_hidden_files_are_passed_over_and_other_formats_are_counted(tmp_path, name):
    for hidden in (".git/x.png", "__MACOSX/._ant.png", "ant/._0.png", "ant/.thumbnails/0.png", "cat/Thumbs.db"):
        spoil(tmp_path / "train" / hidden, "no image")
    for number, ending in enumerate(("JFIF", "jpe", "JPG")):
        Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "train" / "cat" / f"{3 + number}.{ending}", "JPEG")
    data = load(name)
    assert data.classes == ("ant", "cat") and data.train.labels.tolist() == [0] * 3 + [1] * 6
    for other in ("train/cat/a.gif", "train/ant/b.heic", "val/cat/c.GIF", "val/cat/README"):
        spoil(tmp_path / other, "anything")
    with pytest.warns(PathexWarning, match=r"left out: 4 such as .*b.heic' \(2 .gif, 1 .heic, 1 no ending\)") as caught:
        assert len(load(name).train) == 9
    assert len(caught) == 1 and caught[0].filename == __file__


def test_links_are_followed_to_each_folder_once(tmp_path, name, monkeypatch):
    train, elsewhere = tmp_path / "train", tmp_path / "elsewhere"
    for number in range(2):
        write_image(elsewhere / "dogs" / "more" / f"{number}.png", (200, 0, 0))
        write_image(elsewhere / "dogs" / f"{number}.png", (200, 0, 0))
    for link, target in {
        "dog": elsewhere / "dogs",
        "cat/again": train / "cat",
        "cat/all": train,
        "cat/top": tmp_path,
        "ant/images/up": train / "ant",
        "ant/extra": elsewhere / "dogs" / "more",
    }.items():
        (train / link).symlink_to(target)
    data = load(name)
    assert data.classes == ("ant", "cat", "dog") and data.train.labels.bincount().tolist() == [5, 3, 2]
    (train / "ant" / "extra").unlink()
    assert load(name).train.labels.bincount().tolist() == [3, 3, 4]
    (train / "fox").symlink_to(train / "cat")
    with refused("two classes in .*train' are links to one folder"):
        load(name)
    (train / "fox").unlink()
    whole = os.scandir

    def scandir(path):
        if str(path).endswith("images"):
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with refused(r"folder .*ant/images' cannot be read \(Permission denied\)"):
        load(name)


@pytest.mark.parametrize("below", ["", "train"])
def test_test_images_are_cut_from_each_class_alike_for_every_caller(tmp_path, below):
    sizes = {"ant": 10, "bee": 5, "cat": 20}
    for label, count in sizes.items():
        for number in range(count):
            write_image(tmp_path / below / label / f"{number}.png", (number, 0, 0))
    name = f"imagefolder:{tmp_path}"
    with refused(r"no folder 'train'|neither folder 'test'.*test_fraction=0.2 \(--test-fraction 0.2\) cuts"):
        load(name)
    data = load(name, test_fraction=0.2)
    assert data.classes == tuple(sizes)
    assert (data.train.labels.bincount().tolist(), data.test.labels.bincount().tolist()) == ([8, 4, 16], [2, 1, 4])
    shown = [part.data[part.labels == 2][:, 0, 0, 0].tolist() for part in (data.train, data.test)]
    assert sorted(shown[0] + shown[1]) == list(range(20)) and shown[1] != [0, 1, 2, 3]
    assert torch.equal(load(name, test_fraction=0.2, in_memory=0).test.images(torch.arange(7)), data.test.data)
    for wrong in (0, 1, 1.5, "0.2", -0.1):
        with refused("'test_fraction' must be a number in"):
            load(name, test_fraction=wrong)
    with refused("test. fraction 0.01: no image of 35 in 3 classes"):
        load(name, test_fraction=0.01)
    with refused("data .*nowhere': no such folder$"):
        load(f"{name}/nowhere", test_fraction=0.2)
    write_image(tmp_path / "val" / "ant" / "0.png", 0)
    with refused("no folder 'train' there" if not below else "there is a folder 'val'; leave out one"):
        load(name, test_fraction=0.2)


TABLE = "val/val_annotations.txt"
TWO = "train/n02/images/n02_0.JPEG val/images/val_1.JPEG"


@pytest.mark.parametrize(
    ("name", "paths", "content", "message"),
    [
        ("imagefolder", "train", None, "no folder 'train'"),
        ("imagefolder", "val", None, "neither folder 'test' nor 'val'"),
        ("imagefolder", "val/cat", None, "no folder of a class below .*val'"),
        ("imagefolder", "train/dog/.notes.png", "", r"class 'dog' has no image in .*; 1 of 3 classes"),
        ("imagefolder", "val/dog/0.png", "", "class 'dog' of 'val' is no class of 'train'"),
        ("imagefolder", "train/cat train/ant", None, "no folder of a class below"),
        ("tiny-imagenet", "wnids.txt", None, "no file 'wnids.txt'"),
        ("tiny-imagenet", "wnids.txt", " ", "wnids.txt' is empty"),
        ("tiny-imagenet", "wnids.txt", "n01\n../val", "'../val' is named, which is not below"),
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
        ("imagenet", "train/n07/._1.JPEG val/n07/._1.JPEG", "", "class 'n07' has no image in"),
        ("imagenet", "val/n02/val.JPEG", "", "n02/val.JPEG' cannot be read .*; 1 of 9 images"),
        ("imagenet", "train/n02/1.JPEG", "<html>", "n02/1.JPEG' cannot be read .*; 1 of 9 images"),
    ],
)
def test_what_is_incomplete_or_damaged_is_named(tmp_path, name, paths, content, message):
    folder = MAKE[name](tmp_path)
    for path in paths.split():
        spoil(folder / path, content)
    called, options = (f"imagefolder:{tmp_path}", {}) if name == "imagefolder" else (name, {"root": tmp_path})
    with refused(message) as caught:
        load(called, **options)
    assert str(caught.value).startswith(f"data {called!r}")


@pytest.mark.parametrize(("options", "count"), [({}, 3), (WHOLE | {"verify": True}, 3), (WHOLE, 2)])
def test_the_first_damaged_image_and_their_number(tmp_path, name, options, count):
    for path, content in (("train/ant/images/1.png", "no image"), ("train/cat/0.png", ""), ("val/cat/0.png", 30)):
        spoil(tmp_path / path, content)
    with refused(rf"ant.images.1.png' cannot be read .*; {count} of 7 images"):
        load(name, image_size=8, **options)


def test_an_image_that_is_damaged_when_needed_names_itself_and_the_remedy(tmp_path, name, monkeypatch):
    data = load(name, image_size=8, **WHOLE)
    spoil(tmp_path / "val" / "cat" / "0.png", 30)
    remedy = "verify=True looks for such images when the data are loaded"
    with refused(rf"val.cat.0.png' cannot be read \(OSError.*\); {remedy}$"):
        data.test.images(torch.tensor([0]))

    def fail(*args, **kwargs):  # what a damaged TIFF file can do to the library
        raise TypeError("'str' object cannot be interpreted as an integer")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with refused(r"cannot be read \(TypeError: .*; 7 of 7 images cannot be read"):
        load(name)


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("shape", [(75, 100), (60, 41), (34, 34)])
def test_pixels_are_those_of_pillow_within_a_level(tmp_path, name, ending, mode, shape):
    rng = np.random.default_rng(shape)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    file = tmp_path / "train" / "cat" / f"picture.{ending}"
    coarse.resize(shape[::-1], Image.Resampling.BICUBIC).convert(mode).save(file)
    split = load(name, image_size=30, resize=34, in_memory=0).train
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    expected = transforms.center_crop(transforms.resize(picture, [34], antialias=True), [30, 30])
    assert (split.image(6).int() - transforms.pil_to_tensor(expected).int()).abs().max() <= 1
    assert expected.getextrema() != ((0, 0),) * 3


RAMP = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)


@pytest.mark.parametrize(
    ("ending", "picture", "options", "expected"),
    [
        ("png", Image.fromarray(RAMP), {}, RAMP // 256),  # 16 bits keep their brightness
        ("tif", Image.fromarray(RAMP), {}, RAMP // 256),
        ("png", Image.new("L", (8, 8), 9), {}, np.full((8, 8), 9)),
        ("png", Image.new("L", (8, 8), 9).convert("P"), {"transparency": bytes(range(256))}, np.full((8, 8), 9)),
        ("tif", Image.fromarray(np.ones((8, 8), np.float32)), {}, "F"),
        ("tif", Image.fromarray(np.ones((8, 8), np.int32)), {}, "I"),
    ],
)
def test_other_modes_become_colour_unless_their_range_is_unknown(tmp_path, name, ending, picture, options, expected):
    picture.save(tmp_path / "train" / "cat" / f"other.{ending}", **options)
    if isinstance(expected, str):
        with refused(rf"other.tif' cannot be read .*mode {expected}.*8 or 16 bits"):
            load(name)
        return
    pixels = load(name).train.images(torch.tensor([6]))
    np.testing.assert_array_equal(pixels[0].numpy(), np.stack([expected] * 3))


@pytest.mark.parametrize("inside", [False, True])
def test_published_layouts(tmp_path, inside):
    for folder in (make_tiny(tmp_path), make_imagenet(tmp_path)):
        data = load(folder.name.removesuffix("-200"), root=folder if inside else tmp_path)
        assert data.classes == ("n01", "n02", "n03")
        assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 0, 1, 1, 2, 2], [0, 1, 2])
        colours = [data.train.images(torch.arange(6))[:, 0, 0, 0], data.test.images(torch.arange(3))[:, 2, 5, 5]]
        assert data.augment == "resized-crop"
        if isinstance(data.train, ArraySplit):
            expected = [[0, 10, 40, 50, 80, 90], [20, 60, 100]]
            assert data.train.data.shape == (6, 3, 64, 64) and data.image_size == 64
            assert data.augment_options == {"min_scale": 0.1, "max_ratio": 1.25}
        else:
            expected = [[40, 41, 80, 81, 0, 1], [60, 100, 20]]
            assert (data.train.image_size, data.train.resize, data.image_size) == (224, 256, 224)
            assert data.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
            assert data.std.tolist() == pytest.approx([0.229, 0.224, 0.225])
            assert data.augment_options == {"min_scale": 0.2, "grayscale": 0.2, "jitter": 0.4, "hue": 0.4}
        assert [part.tolist() for part in colours] == [pytest.approx(part, abs=1) for part in expected]
    small = load("imagenet", root=folder, image_size=28)
    assert (small.train.image_size, small.test.resize) == (28, 32)
    assert load("imagenet", root=folder, image_size=28, resize=28).test.resize == 28


def test_a_subset_is_a_warning_and_an_image_that_breaks_off_is_found_on_request(tmp_path):
    message = (
        "'tiny-imagenet' in .* is a part of .*: down to 2 train images in a class, down to 1 val images in a class;"
    )
    with pytest.warns(PathexWarning, match=message) as caught:
        load("tiny-imagenet", root=make_tiny(tmp_path))
    assert caught[0].filename == __file__
    with pytest.warns(PathexWarning, match=r"6 train images, 3 val images; published: 1,281,167 train and 50,000 val"):
        load("imagenet", root=make_imagenet(tmp_path))
    file = tmp_path / "imagenet" / "train" / "n03" / "1.JPEG"
    write_image(file, np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    spoil(file, 2000)
    load("imagenet", root=tmp_path)
    with refused(r"n03/1.JPEG' cannot be read .* 1 of 9 images"):
        load("imagenet", root=tmp_path, verify=True)


def test_tiny_is_downloaded_once(tmp_path, monkeypatch):
    source, archive, home = make_tiny(tmp_path / "server"), tmp_path / "server" / "t.zip", tmp_path / "home"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(source.rglob("*")):
            file.write(path, path.relative_to(source.parent))

    def download(url, root, filename, md5):
        (Path(root) / filename).write_bytes(archive.read_bytes())
        if hashlib.md5(archive.read_bytes()).hexdigest() != md5:
            raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    with refused(r"cannot be downloaded .*; put tiny-imagenet-200.zip, or its folder"):
        load("tiny-imagenet", root=home)  # another checksum
    assert not (home / "tiny-imagenet-200").exists()
    monkeypatch.setattr(folders, "_TINY_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("PATHEX_ROOT", str(home))
    first = load("tiny-imagenet")
    assert sorted(path.name for path in home.iterdir()) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]
    archive.unlink()
    (home / "tiny-imagenet-200.zip").unlink()
    assert torch.equal(load("tiny-imagenet").train.data, first.train.data)


def digests(split):
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in split.images(torch.arange(len(split)))]


@pytest.mark.data
def test_the_real_tiny_imagenet(data_folder):
    data = load("tiny-imagenet", root=data_folder)
    assert (len(data.train), len(data.test), data.num_classes) == (3000, 1000, 200)
    assert (data.train.labels.bincount() == 15).all()
    # Mean and deviation that are published for the whole; the subset's are within 2 %.
    assert data.mean.tolist() == pytest.approx([0.480, 0.448, 0.397], abs=0.02)
    assert data.std.tolist() == pytest.approx([0.276, 0.269, 0.282], abs=0.02)
    train, test = digests(data.train), digests(data.test)
    assert not set(train) & set(test)
    folder, by_content = data_folder / "tiny-imagenet-200" / "val", {}
    for line in (folder / "val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        pixels = np.asarray(Image.open(folder / "images" / name).convert("RGB")).transpose(2, 0, 1)
        by_content[hashlib.sha256(pixels.tobytes()).hexdigest()] = wnid
    assert [by_content[digest] for digest in test] == [data.classes[label] for label in data.test.labels.tolist()]


@pytest.mark.data
def test_the_real_imagenet_and_tasks_of_it_that_share_no_image(data_folder):
    data = load("imagenet", root=data_folder, verify=True)
    assert (len(data.train), len(data.test), data.num_classes) == (600, 200, 10)
    assert data.classes == tuple(sorted(path.name for path in (data_folder / "imagenet" / "train").iterdir()))
    chosen = load("imagenet", root=data_folder, classes=[data.classes[7], data.classes[2]])
    for number, old in enumerate((7, 2)):
        rows, old_rows = ((part.train.labels == n).nonzero() for part, n in ((chosen, number), (data, old)))
        assert len(rows) == 60
        assert torch.equal(chosen.train.image(int(rows[3])), data.train.image(int(old_rows[3])))
    parts = [load("imagenet", root=data_folder, tasks=2, task=task, task_seed=1, image_size=64) for task in (0, 1)]
    assert not set(parts[0].classes) & set(parts[1].classes)
    contents = [set(digests(split)) for data in parts for split in (data.train, data.test)]
    assert [len(content) for content in contents] == [300, 100] * 2
    assert len(set.union(*contents)) == 800
