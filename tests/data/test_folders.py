import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision.transforms.v2 import functional as transforms

from damage import spoil
from pathex.data import ArraySplit, DecodedSplit, Split, load
from pathex.errors import InvalidInput


def write(path, colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


@pytest.fixture
def tree(tmp_path):
    for number in range(3):
        write(tmp_path / "train" / "cat" / f"{number}.png", colour=(number, 0, 0))
        write(tmp_path / "train" / "ant" / "images" / f"{number}.png", colour=(100 + number, 0, 0))
    write(tmp_path / "val" / "cat" / "0.png")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_classes_labels_and_pixels_are_the_same_in_memory_and_lazy(tree):
    data, lazy = load(f"imagefolder:{tree}"), load(f"imagefolder:{tree}", in_memory=0)
    assert (data.classes, data.image_size) == (("ant", "cat"), 8)
    assert isinstance(data.train, ArraySplit) and isinstance(lazy.train, DecodedSplit) and isinstance(lazy.train, Split)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.data[:, 0, 0, 0].tolist() == [100, 101, 102, 0, 1, 2]
    assert (len(data.test), data.test.labels.tolist()) == (1, [1])
    indices = torch.tensor([4, 0])
    assert torch.equal(lazy.train.images(indices), data.train.images(indices))
    assert torch.equal(lazy.mean, data.mean)
    write(tree / "test" / "ant" / "0.png")  # test comes before val
    assert load(f"imagefolder:{tree}").test.labels.tolist() == [0]


def test_short_side_is_resized_and_the_centre_cut_or_what_a_transform_makes_of_the_original(tree):
    wide, framed = np.zeros((20, 60, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)
    wide[:, 16:44] = framed[5:35, 5:35] = 200
    Image.fromarray(wide).save(tree / "train" / "cat" / "wide.png")
    name, last = f"imagefolder:{tree}", torch.tensor([6])
    assert load(name, image_size=10).train.images(last).eq(200).all()
    lazy = load(name, in_memory=0)
    assert lazy.image_size == 224
    corner = lazy.train.image(6, lambda image: image.crop((0, 0, 15, 20)).resize((10, 10)))
    assert corner.shape == (3, 10, 10) and corner.eq(0).all()
    Image.fromarray(framed).save(tree / "train" / "cat" / "wide.png")
    assert load(name, image_size=10, resize=16).train.images(last).eq(200).all()
    assert not load(name, image_size=10).train.images(last).eq(200).all()
    for options, message in (
        ({"image_size": 10, "resize": 9}, r"'resize' of data .* at least image_size=10, got 9"),
        ({"image_size": 0}, "option 'image_size'"),
        ({"image_size": 8.0}, "option 'image_size'"),
        ({"in_memory": -1}, "option 'in_memory'"),
    ):
        with pytest.raises(InvalidInput, match=message):
            load(name, **options)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("train", None, "no folder 'train'"),
        ("val", None, "neither folder 'test' nor 'val'"),
        ("val/cat", None, "no images below 'val'"),
        ("train/dog/notes.txt", "", r"class 'dog' has no image in .*; 1 of 3 classes"),
        ("val/dog/0.png", "", "class 'dog' of 'val' is no class of 'train'"),
        ("train/cat/0.png", "no png", r"image '.*0.png' cannot be read"),
        ("train/cat/0.png", 30, r"image '.*0.png' cannot be read"),
        ("val/cat/0.png", "", r"image '.*val.*0.png' cannot be read"),
        ("train/cat train/ant", None, "no folder of a class below"),
    ],
)
def test_unusable_trees_are_one_line(tree, path, content, message):
    for each in path.split():
        spoil(tree / each, content)
    with pytest.raises(InvalidInput, match=message) as caught:
        load(f"imagefolder:{tree}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 3), ({"in_memory": 0, "verify": True, "mean": 0, "std": 1}, 3), ({"in_memory": 0, "mean": 0, "std": 1}, 2)],
)
def test_the_first_damaged_image_and_their_number(tree, options, count):
    for path, content in (("train/ant/images/1.png", "no image"), ("train/cat/0.png", ""), ("val/cat/0.png", 30)):
        spoil(tree / path, content)
    with pytest.raises(InvalidInput, match=rf"ant.images.1.png' cannot be read .*; {count} of 7 images") as caught:
        load(f"imagefolder:{tree}", image_size=8, **options)
    assert "\n" not in str(caught.value)


def test_given_statistics_spare_the_reading_of_all_images(tree, monkeypatch):
    read = []
    original = DecodedSplit.image
    monkeypatch.setattr(DecodedSplit, "image", lambda self, number: read.append(number) or original(self, number))
    load(f"imagefolder:{tree}", image_size=8, in_memory=0, mean=0.5, std=0.5)
    assert set(read) == {0}  # to see channels and size


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("shape", [(75, 100), (60, 41), (34, 34)])
def test_pixels_are_those_of_pillow_within_a_level(tree, ending, mode, shape):
    rng = np.random.default_rng(shape)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    file = tree / "train" / "cat" / f"picture.{ending}"
    coarse.resize(shape[::-1], Image.Resampling.BICUBIC).convert(mode).save(file)
    split = load(f"imagefolder:{tree}", image_size=30, resize=34, in_memory=0).train
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    expected = transforms.center_crop(transforms.resize(picture, [34], antialias=True), [30, 30])
    assert (split.image(6).int() - transforms.pil_to_tensor(expected).int()).abs().max() <= 1
    assert expected.getextrema() != ((0, 0),) * 3


def test_an_image_that_is_damaged_when_needed_names_itself_and_the_remedy(tree, monkeypatch):
    given = {"image_size": 8, "in_memory": 0, "mean": 0, "std": 1}
    data = load(f"imagefolder:{tree}", **given)
    spoil(tree / "val" / "cat" / "0.png", 30)
    remedy = "verify=True looks for such images when the data are loaded"
    with pytest.raises(InvalidInput, match=rf"val.cat.0.png' cannot be read \(OSError.*\); {remedy}$"):
        data.test.images(torch.tensor([0]))
    with pytest.raises(InvalidInput, match=r"0.png' cannot be read \(OSError[^;]*; 1 of 7 images"):
        load(f"imagefolder:{tree}", verify=True, **given)

    def fail(*args, **kwargs):  # what a damaged TIFF file can do to the library
        raise TypeError("'str' object cannot be interpreted as an integer")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(InvalidInput, match=r"cannot be read \(TypeError: .*; 7 of 7 images cannot be read"):
        load(f"imagefolder:{tree}")


def test_some_classes_of_files(tree):
    whole, one = load(f"imagefolder:{tree}", in_memory=0), load(f"imagefolder:{tree}", in_memory=0, classes=["cat"])
    assert (one.classes, one.train.labels.tolist(), len(one.test)) == (("cat",), [0, 0, 0], 1)
    assert torch.equal(one.train.images(torch.arange(3)), whole.train.images(torch.arange(3, 6)))
    assert one.mean[0] < whole.mean[0]
    with pytest.raises(InvalidInput, match="the chosen classes have no test images"):
        load(f"imagefolder:{tree}", classes=["ant"])


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
def test_other_modes_become_colour_without_a_warning_unless_their_range_is_unknown(
    tree, ending, picture, options, expected
):
    picture.save(tree / "train" / "cat" / f"other.{ending}", **options)
    if isinstance(expected, str):
        with pytest.raises(InvalidInput, match=rf"other.tif' cannot be read .*mode {expected}.*8 or 16 bits"):
            load(f"imagefolder:{tree}")
        return
    pixels = load(f"imagefolder:{tree}").train.images(torch.tensor([6]))
    np.testing.assert_array_equal(pixels[0].numpy(), np.stack([expected] * 3))
