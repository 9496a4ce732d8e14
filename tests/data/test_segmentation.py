import os
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from brute_force import segmentation as twin
from damage import spoil
from pathex.data import SegmentationData, SegmentationSplit, Window, load, segmentation_pruning_set
from pathex.data.segmentation import choose_images
from pathex.errors import PathexWarning
from refusals import refused
from small_images import write_image, write_pairs
from voc_folder import write_voc

pytestmark = pytest.mark.filterwarnings("ignore:data 'voc2012'.*published:pathex.errors.PathexWarning")
COLOUR = (7, 99, 201)


def random_sample(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
    labels = torch.randint(21, (height, width), dtype=torch.uint8, generator=generator)
    labels[torch.rand(height, width, generator=generator) < 0.2] = 255
    return image, labels


def seeded(window, sample, scales, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return window.random(sample, scales)


@pytest.mark.parametrize("size", [(5, 7), (8, 9), (6, 4), (6, 6)])
@pytest.mark.parametrize("margin", [0, 3])
def test_unscaled_windows_are_those_cut_pixel_by_pixel(size, margin):
    crop, sample = 6, random_sample(*size)
    expected = set()
    for top, left in product(*(range(min(0, n - crop), max(0, n - crop) + 1) for n in size)):
        image, labels = twin.window(*(part.numpy() for part in sample), top, left, crop, crop + margin, COLOUR)
        expected.add(image.tobytes() + labels.tobytes())
        # The window is mirrored, its padding to ``side`` stays on the right.
        mirrored = (np.concatenate([p[..., :crop][..., ::-1], p[..., crop:]], axis=-1) for p in (image, labels))
        expected.add(b"".join(part.tobytes() for part in mirrored))
    found = [seeded(Window(crop, crop + margin, COLOUR), sample, (1.0, 1.0), seed) for seed in range(200)]
    assert {image.numpy().tobytes() + labels.numpy().tobytes() for image, labels in found} == expected


@pytest.mark.parametrize(("size", "first"), [((10, 12), (1, 2)), ((9, 8), (0, 0)), ((5, 6), (-2, -1))])
def test_the_centre_is_in_the_middle(size, first):
    sample = random_sample(*size)
    expected = twin.window(*(part.numpy() for part in sample), *first, 8, 11, COLOUR)
    for actual, wanted in zip(Window(8, 11, COLOUR).centre(sample), expected, strict=True):
        np.testing.assert_array_equal(actual.numpy(), wanted)


def blocks(height, width, block):
    """Squares of different classes, whose colours tell the class."""
    rows, columns = torch.arange(height) // block, torch.arange(width) // block
    labels = ((rows[:, None] * 3 + columns[None]) % 5).to(torch.uint8)
    return torch.stack([labels * 50, 255 - labels * 50, labels * 10 + 30]), labels


def colours_that_contradict_labels(image, labels):
    """Share of pixels whose colour is far from that of their label."""
    wanted = torch.stack([labels * 50.0, 255.0 - labels * 50.0, labels * 10.0 + 30])
    return float(((image - wanted).abs().amax(0) > 20)[labels != 255].double().mean())


@pytest.mark.parametrize("seed", range(4))
def test_scaled_images_and_labels_stay_on_top_of_each_other(seed):
    image, labels = seeded(Window(70, 70, COLOUR), blocks(120, 150, 30), (0.5, 2.0), seed)
    # Blocks of 15 to 60 pixels: only the pixels at their edges are mixtures.
    assert colours_that_contradict_labels(image, labels) < 0.14


def test_the_scale_is_uniform_between_its_bounds():
    sample = torch.zeros(3, 40, 100, dtype=torch.uint8), torch.arange(100, dtype=torch.uint8).repeat(40, 1)
    columns = []
    for seed in range(200):
        _, labels = seeded(Window(200, 200, COLOUR), sample, (0.5, 2.0), seed)
        columns.append(int((labels != 255).any(0).sum()))
    assert 50 <= min(columns) < 60 and 190 < max(columns) <= 200
    assert np.mean(columns) == pytest.approx(125, abs=10)  # three standard errors of a uniform mean


def test_a_fitted_image_has_its_short_side_in_the_window():
    image, labels = Window(60, 64, COLOUR).fitted(blocks(120, 180, 30))
    assert image.shape == (3, 64, 64)
    assert torch.equal(labels == 255, torch.arange(64)[:, None].maximum(torch.arange(64)) >= 60)
    # 120 x 180 becomes 60 x 90, of which columns 15 to 74 are seen: one block of 15 is left out on each side.
    assert labels[30, [0, 14, 15, 59]].tolist() == [2, 2, 3, 0]
    assert colours_that_contradict_labels(image, labels) < 0.1


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 25), st.integers(1, 6), st.integers(1, 6), st.floats(0.05, 0.9), st.integers(0, 99))
def test_every_class_gets_its_images(count, classes, wanted, share, seed):
    present = torch.rand(count, classes, generator=torch.Generator().manual_seed(seed)) < share
    chosen = choose_images(present, wanted, torch.Generator().manual_seed(seed))
    assert len(set(chosen)) == len(chosen)
    assert present[chosen].any(1).all()  # none is there for nothing
    for column in range(classes):
        assert int(present[chosen, column].sum()) >= min(wanted, int(present[:, column].sum()))
    assert len(chosen) <= wanted * classes


def test_classes_draw_different_images_where_there_are_enough():
    present = torch.zeros(30, 3, dtype=torch.bool)
    for column in range(3):
        present[column * 8 : column * 8 + 14, column] = True
    chosen, again, other = (choose_images(present, 4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert len(chosen) == 12 and chosen == again != other


@pytest.fixture
def data(tmp_path):
    """Twelve images: class 1 in the corner of 0 to 3 and the middle of 4 and 5, class 2 in the middle of 6 to 11."""
    pairs = []
    for number in range(12):
        labels = np.zeros((20, 24), dtype=np.uint8)
        labels[0, 0] = 255
        place = (slice(0, 2), slice(0, 2)) if number < 4 else (slice(9, 11), slice(11, 13))
        labels[place] = 1 if number < 6 else 2
        pairs.append((np.full((20, 24, 3), 10 * number, dtype=np.uint8), labels))
    split = write_pairs(tmp_path, enumerate(pairs), 3)
    return SegmentationData("toy", split, split, ("ground", "corner", "middle"), torch.full((3,), 0.5), torch.ones(3))


def test_the_pruning_set_shows_each_class_in_what_is_seen_and_names_those_with_too_few_images(data):
    before = torch.random.get_rng_state()
    chosen = segmentation_pruning_set(data, 2, 0, data.window(8, 12), torch.arange(12))
    assert torch.equal(before, torch.random.get_rng_state())
    # The corners of images 0 to 3 are outside the window, so that they do not show class 1.
    assert {4, 5} <= set(chosen.indices) <= set(range(4, 12)) and len(chosen.indices) == 4
    assert (chosen.labels.shape, chosen.labels.dtype) == ((4, 12, 12), torch.int64)
    for image, labels, index in zip(chosen.images, chosen.labels, chosen.indices, strict=True):
        assert (labels == (1 if index < 6 else 2)).sum() == 4
        assert (labels == 255).sum() == 12 * 12 - 8 * 8
        seen = image[:, :8, :8]
        torch.testing.assert_close(seen, torch.full_like(seen, 10 * index / 255 - 0.5))
        assert image[:, 8:].abs().max() <= 0.5 / 255 + 1e-6  # the mean colour, rounded to a byte
    assert segmentation_pruning_set(data, 2, 0, data.window(8, 12), torch.arange(12)).hash == chosen.hash
    others = (segmentation_pruning_set(data, 2, seed, data.window(8), torch.arange(12)) for seed in range(6))
    assert {other.hash for other in others} != {chosen.hash}
    with pytest.warns(PathexWarning, match=r"fewer than 3 training images .* show corner \(2\)$"):
        chosen = segmentation_pruning_set(data, 3, 0, data.window(8), torch.arange(12))
    assert len(chosen.indices) == 5
    with pytest.warns(PathexWarning, match=r"show corner \(0\), middle \(2\)$"):
        chosen = segmentation_pruning_set(data, 3, 0, data.window(8), torch.tensor([0, 9, 6]))
    assert set(chosen.indices) == {6, 9}
    with pytest.warns(PathexWarning, match="corner"), refused("no training image shows a class in its middle 8 pixels"):
        segmentation_pruning_set(data, 3, 0, data.window(8), torch.tensor([0, 1]))
    for wrong in ({"images_per_class": 0, "seed": 0}, {"images_per_class": 1, "seed": -1}):
        with refused(r"images_per_class|seed"):
            segmentation_pruning_set(data, **wrong, window=data.window(8), indices_from=torch.arange(12))


def test_colours_sizes_and_damaged_label_maps(data):
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(data.normalise(pixels).flatten(), torch.tensor([0, 128 / 255, 1]) - 0.5)
    assert data.window(5) == Window(5, 5, (128, 128, 128))
    split = SegmentationSplit(data.train.image_files, data.train.label_files, 3, image_size=10)
    image, labels = split.sample(7)
    assert (image.shape, labels.shape) == ((3, 10, 12), (10, 12))
    assert torch.equal(split.labels(7), labels)
    assert (labels == 2).sum() == 1  # one of four pixels
    write_image(Path(data.train.label_files[3]), (0, 0, 0), (24, 20))
    with refused(r"mask3.png' is of mode RGB; allowed: one byte a pixel"):
        data.train.sample(3)
    write_image(Path(data.train.label_files[3]), 3, (24, 20))
    with refused(r"mask3.png' holds label 3; allowed: 0 to 2, and 255"):
        data.train.labels(3)


@pytest.fixture
def base(tmp_path):
    return write_voc(tmp_path, 5, 2)


def test_pairs_are_those_of_the_lists_in_the_folder_or_one_that_holds_it(base, tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.voc.download_and_extract_archive", lambda *_, **__: pytest.fail("net"))
    with pytest.warns(PathexWarning, match=r"5 \+ 2 images, published 1464 \+ 1449"):
        data = load("voc2012", root=tmp_path)
    for inside in ("VOCdevkit", "VOCdevkit/VOC2012"):
        assert load("voc2012", root=tmp_path / inside).train.image_files == data.train.image_files
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


BLACK, RED, NAVY, BORDER = (0, 0, 0), (128, 0, 0), (0, 0, 128), (224, 224, 192)


@pytest.mark.parametrize(
    ("palette", "numbers"),
    [
        ([BLACK, RED, NAVY, BORDER], (0, 1, 2, 3)),
        ([BORDER, BLACK, NAVY, RED], (1, 3, 2, 0)),
        ([NAVY, RED, RED, BORDER, BLACK], (4, 2, 0, 3)),
        ([(number,) * 3 for number in range(256)], (0, 1, 4, 255)),
        (None, (0, 1, 4, 255)),
        ("RGB", (BLACK, RED, NAVY, BORDER)),
    ],
)
def test_colours_tell_the_classes_of_label_maps_whose_palette_was_put_in_order_anew(base, tmp_path, palette, numbers):
    places = np.arange(30 * 40).reshape(30, 40) % 4
    stored = np.array(numbers, np.uint8)[places]
    picture = Image.fromarray(stored)
    if isinstance(palette, list):
        picture.putpalette([value for colour in palette for value in colour])
    file = base / "SegmentationClass" / "train_001.png"
    picture.save(file)
    (file.parent / ".DS_Store").write_bytes(b"")
    (file.parent / "._train_001.png").write_bytes(b"")
    labels = load("voc2012", root=tmp_path).train.labels(1)
    np.testing.assert_array_equal(labels.numpy(), np.array([0, 1, 4, 255])[places])


@pytest.mark.parametrize("kind", ["palette", "RGB"])
def test_colours_that_stand_for_no_class_are_refused(base, tmp_path, kind):
    picture = Image.new("RGB", (40, 30), (1, 2, 3))
    picture = picture.quantize(2) if kind == "palette" else picture
    picture.save(base / "SegmentationClass" / "val_001.png")
    with refused(r"val_001.png' has colour \(1, 2, 3\), which stands for no class"):
        load("voc2012", root=tmp_path)


LISTS = "ImageSets/Segmentation/"
THREE = " ".join(f"JPEGImages/train_00{number}.jpg" for number in (1, 2, 4))


@pytest.mark.parametrize(
    ("paths", "content", "message", "seen_in_headers"),
    [
        ("JPEGImages/train_001.jpg", None, r"train_001.jpg' cannot be read .No such file", True),
        ("SegmentationClass/val_000.png", None, r"val_000.png' cannot be read .No such file", True),
        (THREE, None, r"train_001.jpg' cannot be read .* \(and 2 more of 5 pairs cannot be used\)", True),
        ("JPEGImages/train_002.jpg", "<html>", r"train_002.jpg' cannot be read \(UnidentifiedImageError", True),
        ("SegmentationClass/train_002.png", "", r"train_002.png' cannot be read", True),
        ("JPEGImages/train_004.jpg", 60, r"train_004.jpg' cannot be read \(OSError.*truncated", False),
        ("SegmentationClass/train_004.png", 60, r"train_004.png' cannot be read", True),
        ("SegmentationClass/train_000.png", (1, (40, 28)), r"is 40 x 30 and its label map 40 x 28 pixels", True),
        ("SegmentationClass/train_000.png", (21, (40, 30)), r"0.png' holds label 21; allowed: 0 to 20, and 255", False),
        (LISTS + "val.txt", None, r"the list '.*val.txt' cannot be read \(No such file", True),
        (LISTS + "train.txt", "", r"the list '.*train.txt' is empty", True),
        (LISTS + "val.txt", "val_000\ntrain_003\n", r"'train_003' is in both lists", True),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(base, tmp_path, paths, content, message, seen_in_headers):
    for path in paths.split():
        if isinstance(content, tuple):
            write_image(base / path, *content)
        else:
            spoil(base / path, content)
    with refused(message):
        load("voc2012", root=tmp_path)
    with refused(message) if seen_in_headers else nullcontext():
        load("voc2012", root=tmp_path, verify=False)


@pytest.mark.parametrize("line", ["../../train_000", "/etc/passwd"])
def test_lists_name_files_of_the_data_set_alone(base, tmp_path, line):
    (base / "ImageSets" / "Segmentation" / "val.txt").write_text(f"{line}\n")
    with refused(f"'{line}.jpg' is named, which is not below"):
        load("voc2012", root=tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with refused("cannot be read .*no regular file"):
        SegmentationSplit((str(tmp_path / "pipe.png"),), ("",), 2).sample(0)


def test_a_failed_download_says_what_is_needed(tmp_path, monkeypatch):
    asked = []

    def fail(url, root, filename, md5):
        asked.append((url, filename, md5))
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.voc.download_and_extract_archive", fail)
    needed = r"\(OSError: no route to host\); there is no folder 'VOCdevkit/VOC2012' in .*: put"
    with refused(needed):
        load("voc2012", root=tmp_path / "new")
    assert not list(tmp_path.iterdir())  # the folder made for the download is gone
    ((url, archive, checksum),) = asked
    assert url.startswith("https://")
    assert (archive, checksum) == ("VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd")


@pytest.mark.data
def test_the_subset_of_the_original(data_folder):
    data = load("voc2012", root=data_folder)
    assert (len(data.train), len(data.test)) == (70, 40)
    image, labels = data.train.sample(0)
    assert image.shape[1:] == labels.shape
    seen = torch.cat([data.test.labels(number).flatten().unique() for number in range(40)]).unique()
    assert seen.tolist() == [0, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 255]
