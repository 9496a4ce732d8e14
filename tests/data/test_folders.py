"""Image folders."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pathex.data import ArraySplit, Split, load
from pathex.data._folders import FolderSplit
from pathex.errors import InvalidInput


def write(path, size=(8, 8), colour=(10, 20, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


@pytest.fixture
def tree(tmp_path):
    for number in range(3):
        write(tmp_path / "train" / "cat" / f"{number}.png", colour=(number, 0, 0))
        write(tmp_path / "train" / "ant" / "images" / f"{number}.png", colour=(100 + number, 0, 0))
    write(tmp_path / "val" / "cat" / "0.png")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_classes_labels_and_pixels(tree):
    data = load(f"imagefolder:{tree}")
    assert data.classes == ("ant", "cat")
    assert data.image_size == 8
    assert isinstance(data.train, ArraySplit)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.data[:, 0, 0, 0].tolist() == [100, 101, 102, 0, 1, 2]
    assert (len(data.test), data.test.labels.tolist()) == (1, [1])


def test_lazy_and_in_memory_are_the_same(tree):
    lazy, whole = load(f"imagefolder:{tree}", in_memory=0), load(f"imagefolder:{tree}")
    assert isinstance(lazy.train, FolderSplit)
    assert isinstance(lazy.train, Split)
    indices = torch.tensor([4, 0])
    assert torch.equal(lazy.train.images(indices), whole.train.images(indices))
    assert torch.equal(lazy.mean, whole.mean)


def test_short_side_is_resized_and_the_centre_cut(tree):
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 16:44] = 200
    Image.fromarray(picture).save(tree / "train" / "cat" / "wide.png")
    data = load(f"imagefolder:{tree}", image_size=10)
    assert data.train.images(torch.tensor([6])).eq(200).all()
    assert load(f"imagefolder:{tree}", in_memory=0).image_size == 224


def test_grey_images_become_colour(tree):
    write(tree / "train" / "cat" / "grey.png", mode="L", colour=(9, 9, 9))
    assert load(f"imagefolder:{tree}").train.data[-1].unique().tolist() == [9]


def test_test_comes_before_val(tree):
    write(tree / "test" / "ant" / "0.png")
    assert load(f"imagefolder:{tree}").test.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: shutil.rmtree(tree / "train"), "no folder 'train'"),
        (lambda tree: shutil.rmtree(tree / "val"), "neither folder 'test' nor 'val'"),
        (lambda tree: shutil.rmtree(tree / "val" / "cat"), "no images below 'val'"),
        (lambda tree: (tree / "train" / "dog").mkdir(), "class 'dog' has no training image"),
        (lambda tree: write(tree / "val" / "dog" / "0.png"), "class 'dog' of 'val' is no class of 'train'"),
        (lambda tree: (tree / "train" / "cat" / "0.png").write_bytes(b"no png"), r"image '.*0.png' cannot be read"),
        (lambda tree: (tree / "val" / "cat" / "0.png").write_bytes(b""), r"image '.*val.*0.png' cannot be read"),
    ],
)
def test_unusable_trees_are_one_line(tree, change, message):
    change(tree)
    with pytest.raises(InvalidInput, match=message) as caught:
        load(f"imagefolder:{tree}")
    assert "\n" not in str(caught.value)


def test_truncated_image(tree):
    file = tree / "train" / "cat" / "0.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(InvalidInput, match="cannot be read"):
        load(f"imagefolder:{tree}")


@pytest.mark.parametrize("option", [{"image_size": 0}, {"image_size": 8.0}, {"in_memory": -1}])
def test_bad_options(tree, option):
    with pytest.raises(InvalidInput, match=f"option '{next(iter(option))}'"):
        load(f"imagefolder:{tree}", **option)
