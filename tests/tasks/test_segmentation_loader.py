from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brute_force import segmentation as twin
from pathex.data import SegmentationData
from pathex.tasks.segmentation import SegmentationLoader
from pathex.train import cut_batches, share_of
from refusals import refused
from small_images import write_pairs

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path):
    """Thirteen images of different sizes; the colour of image n is 15 n."""
    draws, pairs = np.random.default_rng(1), []
    for number in range(13):
        size = (8 + number % 4, 9 + number % 3)
        pairs.append((np.full((*size, 3), 15 * number, np.uint8), draws.integers(0, 4, size, dtype=np.uint8)))
    split, half = write_pairs(tmp_path, enumerate(pairs), 4), torch.full((3,), 0.5)
    return SegmentationData("toy", split, split, ("ground", "a", "b", "c"), half, half)


def loader(data, **options):
    return SegmentationLoader(data, data.train, data.window(10), **{"device": CPU, "batch_size": 4, **options})


def numbers(images):
    """Which images these are, by the colour at the place where they differ most from the padding."""
    colours = ((images[:, 0] * 0.5 + 0.5) * 255).round().int()
    return [min(value for value in colour.unique().tolist() if value % 15 == 0) // 15 for colour in colours]


def test_an_epoch_has_every_image_once_and_follows_from_seed_and_epoch(data):
    batches = list(loader(data, augment="scale-crop").shuffled(3, 1))
    assert [len(images) for images, _ in batches] == [4, 4, 5]  # none is alone
    assert loader(data).batches == 3
    assert sorted(number for images, _ in batches for number in numbers(images)) == list(range(13))
    images, labels = batches[0]
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (images.shape[1:], labels.shape[1:]) == ((3, 10, 10), (10, 10))
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    again = list(loader(data, augment="scale-crop").shuffled(3, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.testing.assert_close(again, batches, rtol=0, atol=0)
    for seed, epoch in ((3, 2), (4, 1)):
        other = list(loader(data, augment="scale-crop").shuffled(seed, epoch))
        assert not all(torch.equal(x, u) for (x, _), (u, _) in zip(batches, other, strict=True) if x.shape == u.shape)


def test_without_augmentation_the_centre_is_seen(data):
    for images, labels in loader(data).shuffled(0, 1):
        for image, marks, number in zip(images, labels, numbers(images), strict=True):
            pair = data.train.sample(number)
            height, width = pair[1].shape
            corner = ((height - 10) // 2, (width - 10) // 2)
            expected = twin.window(*(part.numpy() for part in pair), *corner, 10, 10, (128, 128, 128))
            np.testing.assert_array_equal(marks.numpy(), expected[1])
            np.testing.assert_allclose(image.numpy(), expected[0] / 127.5 - 1, atol=1e-6)


def test_augmentation_moves_scales_and_mirrors(data):
    def by_number(**options):
        batches = loader(data, **options).shuffled(0, 1)
        return {number: marks for x, y in batches for number, marks in zip(numbers(x), y, strict=True)}

    plain, moved = by_number(), by_number(augment="scale-crop")
    assert sum(not torch.equal(plain[number], marks) for number, marks in moved.items()) >= 11
    # At one half no image of at most 11 pixels fills the window; with no scaling the mirrored centre is all there is.
    options = {"min_scale": 0.5, "max_scale": 0.5}
    for _, labels in loader(data, augment="scale-crop", augment_options=options).shuffled(0, 1):
        assert ((labels != 255).flatten(1).sum(1) <= 36).all()


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_processes_together_see_what_one_would(data, ranks, whole):
    options = {"augment": "scale-crop", "batch_size": 6, "whole": whole}
    shares = [loader(data, share=(rank, ranks), **options) for rank in range(ranks)]
    alone = loader(data, **options)
    assert {share.images for share in shares} == {13}
    together = [
        torch.cat([part[0] for part in parts]) for parts in zip(*(s.shuffled(1, 2) for s in shares), strict=True)
    ]
    one = torch.cat([images for images, _ in alone.shuffled(1, 2)])
    assert torch.equal(torch.cat(together), one)
    sizes = [[len(images) for images, _ in share.shuffled(1, 2)] for share in shares]
    assert min(map(min, sizes)) >= 2
    for step in zip(*sizes, strict=True):
        assert max(step) - min(step) <= 1
    seen = sorted(number for share in shares for images, _ in share.in_order() for number in numbers(images))
    assert seen == list(range(13))


def test_whole_images_come_one_by_one_in_their_own_size_and_an_unreadable_one_is_named(data):
    passes = list(loader(data, whole=True).in_order())
    assert len(passes) == 13
    for number, (image, labels) in enumerate(passes):
        pair = data.train.sample(number)
        assert torch.equal(labels[0], pair[1].long())
        assert torch.equal(image, data.normalise(pair[0][None]))
    part = loader(data, indices=torch.tensor([12, 3, 5]), batch_size=2)
    assert part.images == 3
    assert [numbers(images) for images, _ in part.in_order()] == [[12, 3], [5]]
    assert [len(images) for images, _ in part.shuffled(0, 1)] == [3]
    Path(data.train.image_files[6]).write_bytes(b"nothing")
    with refused(r"6.png' cannot be read"):
        list(loader(data).shuffled(0, 1))


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 9), st.integers(1, 5))
def test_every_place_is_in_one_batch_and_one_share(images, batch_size, least, ranks):
    batches = cut_batches(images, batch_size, least)
    assert [place for batch in batches for place in batch] == list(range(images))
    assert all(len(batch) >= min(least, batch_size, images) for batch in batches)
    for batch in batches:
        shares = [share_of(batch, rank, ranks) for rank in range(ranks)]
        assert [place for share in shares for place in share] == list(batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": (0, 5)}, "batches of 4 images cannot be shared by 5 processes"),
        ({"indices": torch.arange(1), "share": (1, 2)}, "batches of 1 images cannot be shared by 2 processes"),
        ({"share": (2, 2)}, r"part must be .* got \(2, 2\)"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"augment": "crop-flip"}, "unknown augment 'crop-flip'"),
        ({"augment_options": {"scale": 2}}, "'scale' of augment 'scale-crop'. Known: min_scale, max_scale"),
        ({"augment_options": {"min_scale": 0}}, r"'min_scale' of augment 'scale-crop' must lie in \(0, 10\], got 0"),
        ({"augment_options": {"min_scale": 3.0}}, "min_scale 3.0 of augment 'scale-crop' is above max_scale 2.0"),
        ({"augment": "none", "augment_options": {"min_scale": 1.0}}, r"'min_scale' of augment 'none'\. Known: none"),
    ],
)
def test_what_cannot_be_used(data, options, message):
    with refused(message):
        loader(data, **{"augment": "scale-crop", **options})
