from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from brute_force import segmentation as twin
from pathex.data import SegmentationData, SegmentationSplit, Window, segmentation_pruning_set
from pathex.data.segmentation import choose_images
from pathex.errors import InvalidInput, PathexWarning

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
    assert (labels[60:] == 255).all()
    assert (labels[:, 60:] == 255).all()
    assert (labels[:60, :60] != 255).all()
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
    images, masks = [], []
    for number in range(12):
        labels = np.zeros((20, 24), dtype=np.uint8)
        labels[0, 0] = 255
        if number < 4:
            labels[:2, :2] = 1
        else:
            labels[9:11, 11:13] = 1 if number < 6 else 2
        pixels = np.full((20, 24, 3), 10 * number, dtype=np.uint8)
        images.append(str(tmp_path / f"{number}.png"))
        masks.append(str(tmp_path / f"mask{number}.png"))
        Image.fromarray(pixels).save(images[-1])
        Image.fromarray(labels).save(masks[-1])
    split = SegmentationSplit(tuple(images), tuple(masks), 3)
    return SegmentationData("toy", split, split, ("ground", "corner", "middle"), torch.full((3,), 0.5), torch.ones(3))


def test_the_pruning_set_shows_each_class_in_what_is_seen(data):
    before = torch.random.get_rng_state()
    chosen = segmentation_pruning_set(data, 2, 0, data.window(8, 12), torch.arange(12))
    assert torch.equal(before, torch.random.get_rng_state())
    # The corners of images 0 to 3 are outside the window, so that they do not show class 1.
    assert set(chosen.indices) >= {4, 5}
    assert set(chosen.indices) <= set(range(4, 12))
    assert len(chosen.indices) == 4
    assert chosen.labels.shape == (4, 12, 12)
    assert chosen.labels.dtype == torch.int64
    for image, labels, index in zip(chosen.images, chosen.labels, chosen.indices, strict=True):
        assert (labels == (1 if index < 6 else 2)).sum() == 4
        assert (labels == 255).sum() == 12 * 12 - 8 * 8
        seen = image[:, :8, :8]
        torch.testing.assert_close(seen, torch.full_like(seen, 10 * index / 255 - 0.5))
        assert image[:, 8:].abs().max() <= 0.5 / 255 + 1e-6  # the mean colour, rounded to a byte
    assert segmentation_pruning_set(data, 2, 0, data.window(8, 12), torch.arange(12)).hash == chosen.hash
    others = (segmentation_pruning_set(data, 2, seed, data.window(8), torch.arange(12)) for seed in range(6))
    assert {other.hash for other in others} != {chosen.hash}


def test_classes_with_too_few_images_are_named(data):
    with pytest.warns(PathexWarning, match=r"fewer than 3 training images .* show corner \(2\)$"):
        chosen = segmentation_pruning_set(data, 3, 0, data.window(8), torch.arange(12))
    assert len(chosen.indices) == 5
    with pytest.warns(PathexWarning, match=r"show corner \(0\), middle \(2\)$"):
        chosen = segmentation_pruning_set(data, 3, 0, data.window(8), torch.tensor([0, 9, 6]))
    assert set(chosen.indices) == {6, 9}
    with (
        pytest.warns(PathexWarning, match="corner"),
        pytest.raises(InvalidInput, match="no training image shows a class in its middle 8 pixels"),
    ):
        segmentation_pruning_set(data, 3, 0, data.window(8), torch.tensor([0, 1]))
    for wrong in ({"images_per_class": 0, "seed": 0}, {"images_per_class": 1, "seed": -1}):
        with pytest.raises(InvalidInput, match=r"images_per_class|seed"):
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
    Image.new("RGB", (24, 20)).save(data.train.label_files[3])
    with pytest.raises(InvalidInput, match=r"mask3.png' is of mode RGB; allowed: one byte a pixel"):
        data.train.sample(3)
    Image.fromarray(np.full((20, 24), 3, dtype=np.uint8)).save(data.train.label_files[3])
    with pytest.raises(InvalidInput, match=r"mask3.png' holds label 3; allowed: 0 to 2, and 255"):
        data.train.labels(3)
