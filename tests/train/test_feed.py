import shutil
from itertools import product
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2.functional import pil_to_tensor

from pathex.data import ArraySplit, Augmentation, DecodedSplit, ImageData, load, upload
from pathex.train import Feed, epoch_generator
from pathex.train.feed import RESIDENT_SHARE, _fits
from refusals import refused
from small_images import write_image, write_images
from snapshots import assert_same
from training_in_processes import CPU, Images, LazySplit

PUBLISHED = {"min_scale": 0.2, "grayscale": 0.2, "jitter": 0.4, "hue": 0.4}


def feeding(data, batch_size=8, **options):
    return Feed(data, data.train, **({"device": CPU, "batch_size": batch_size} | options))


def collected(batches):
    pairs = list(batches)
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


def test_a_pass_in_order_gives_every_image_once(images):
    feed = feeding(images, augment="flip")
    seen, labels = collected(feed.in_order())
    assert torch.equal(seen, images.normalise(images.train.data)) and torch.equal(labels, images.train.labels)
    assert (feed.images, feed.batches) == (34, 5)
    some = feeding(images, 11, indices=torch.arange(33, -1, -1))
    assert [len(labels) for _, labels in some.in_order()] == [11, 11, 12]  # a single image joins the batch before
    assert some.batches == 3
    assert torch.equal(collected(some.in_order())[0], seen.flip(0))


def test_a_shuffled_pass_is_a_permutation_that_follows_from_seed_and_number_alone(images):
    seen, labels = collected(feeding(images).shuffled(0, 1))
    expected = images.normalise(images.train.data)
    rows = (seen.flatten(1)[:, None] == expected.flatten(1)[None]).all(-1).int().argmax(1)
    assert sorted(rows.tolist()) == list(range(34)) != rows.tolist()
    assert torch.equal(labels, images.train.labels[rows])
    feed = feeding(images, augment="crop-flip")
    first, _ = collected(feed.shuffled(0, 1))
    torch.rand(3)
    assert torch.equal(first, collected(feed.shuffled(0, 1))[0])
    for seed, epoch in ((0, 2), (1, 0)):
        assert not torch.equal(first, collected(feed.shuffled(seed, epoch))[0])


@pytest.mark.parametrize(
    ("ranks", "batch_size", "sizes"),
    [
        (2, 8, [[4, 4], [4, 4], [4, 4], [4, 4], [1, 1]]),
        (3, 8, [[3, 3, 2], [3, 3, 2], [3, 3, 2], [4, 3, 3]]),  # the last 2 images join
        (4, 10, [[3, 3, 2, 2], [3, 3, 2, 2], [3, 3, 2, 2], [1, 1, 1, 1]]),
    ],
)
@pytest.mark.parametrize("augment", ["none", "crop-flip", "resized-crop"])
@pytest.mark.parametrize("lazy", [False, True])
def test_several_processes_see_what_one_sees(images, ranks, batch_size, sizes, augment, lazy):
    data = Images(LazySplit(34, 0), LazySplit(8, 1)) if lazy else images
    options = {"augment": augment, "augment_options": PUBLISHED if augment == "resized-crop" else None}
    feeds = [feeding(data, batch_size, part=(rank, ranks), **options) for rank in range(ranks)]
    # One process, whose images are in memory, does not join the batches that are too small for several.
    one = feeding(images, batch_size, **options)
    for passes in (lambda feed: feed.in_order(), lambda feed: feed.shuffled(0, 3)):
        pieces = list(zip(*(passes(feed) for feed in feeds), strict=True))
        assert [[len(labels) for _, labels in piece] for piece in pieces] == sizes
        together = collected((torch.cat([p[0] for p in piece]), torch.cat([p[1] for p in piece])) for piece in pieces)
        assert_same(together, collected(passes(one)))
    assert {(feed.images, feed.batches) for feed in feeds} == {(34, len(sizes))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": (2, 2)}, r"part must be .* got \(2, 2\)"),
        ({"batch_size": -1}, "batch_size must be a positive integer, got -1"),
        ({"part": (0, 9)}, "batches of 8 images cannot be shared by 9 processes"),
        ({"part": (0, 3), "indices": torch.arange(2)}, "batches of 2 images"),
        ({"workers": -1}, "workers must be an integer of at least 0, got -1"),
        ({"workers": True}, "got True"),
        ({"augment": "mixup"}, "unknown augmentation 'mixup'"),
        ({"augment": "flip", "augment_options": {"hue": 0.1}}, "unknown option of augmentation 'flip': 'hue'"),
    ],
)
def test_bad_arguments(images, options, message):
    with refused(message):
        feeding(images, **options)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Photographs of many shapes: 2 classes, 18 + 4 images."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for part, label, number in product(("train", "val"), "ab", range(9)):
        if part == "train" or number < 2:
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            image = coarse.resize(rng.integers(14, 40, 2), Image.Resampling.BICUBIC)
            write_image(root / part / label / f"{number}.png", np.asarray(image))
    return root


@pytest.fixture
def photographs(tree):
    return load(f"imagefolder:{tree}", image_size=12, in_memory=0, mean=0.5, std=0.25)


def test_crops_are_cut_from_the_originals(photographs, tree):
    feed = feeding(photographs, 7, augment="resized-crop", augment_options=PUBLISHED)
    augmentation = Augmentation.of("resized-crop", PUBLISHED)
    generator = epoch_generator(5, 2)
    order = torch.randperm(18, generator=generator)
    seeds = augmentation.draw(18, generator)["seed"].tolist()
    seen, labels = collected(feed.shuffled(5, 2))
    assert torch.equal(labels, photographs.train.labels[order])
    for row, seed, got in zip(order.tolist(), seeds, seen, strict=True):
        with torch.random.fork_rng(devices=[]), Image.open(tree / "train" / "ab"[row // 9] / f"{row % 9}.png") as file:
            torch.manual_seed(seed)
            expected = pil_to_tensor(augmentation.transform(12, 3)(file.convert("RGB")))
        assert torch.equal(got, photographs.normalise(expected[None])[0])
        assert not torch.equal(expected, photographs.train.image(row))


def test_decoding_and_memory_agree_in_order_and_with_flips(photographs, tree):
    held = load(f"imagefolder:{tree}", image_size=12, mean=0.5, std=0.25)
    assert isinstance(photographs.train, DecodedSplit)
    for passes in (lambda feed: feed.in_order(), lambda feed: feed.shuffled(0, 1)):
        assert_same(*(collected(passes(feeding(data, 4, augment="flip"))) for data in (photographs, held)))


@pytest.mark.parametrize("augment", ["flip", "resized-crop"])
def test_workers_and_parts_do_not_matter(photographs, augment):
    def epoch(workers, part=(0, 1)):
        options = {"augment": augment, "augment_options": PUBLISHED if augment == "resized-crop" else None}
        return list(feeding(photographs, 5, part=part, workers=workers, **options).shuffled(1, 1))

    alone = epoch(0)
    assert [len(labels) for _, labels in alone] == [5, 5, 5, 3]
    for workers in (1, 2, None):
        assert_same(alone, epoch(workers))
    pieces = zip(epoch(0, (0, 2)), epoch(1, (1, 2)), strict=True)
    for whole, (left, right) in zip(alone, pieces, strict=True):
        assert torch.equal(whole[0], torch.cat([left[0], right[0]]))


def test_only_the_own_piece_is_decoded(photographs, monkeypatch):
    decoded, original = [], DecodedSplit.image
    monkeypatch.setattr(DecodedSplit, "image", lambda self, number: decoded.append(number) or original(self, number))
    for rank in range(2):
        list(feeding(photographs, 6, part=(rank, 2), workers=0).shuffled(0, 1))
        assert len(decoded) == 9 * (rank + 1)
    assert sorted(decoded) == list(range(18))


def test_an_image_that_vanishes_is_named(photographs, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "copy")
    data = load(f"imagefolder:{tmp_path / 'copy'}", image_size=12, in_memory=0, mean=0.5, std=0.25)
    (tmp_path / "copy" / "train" / "b" / "3.png").unlink()
    with refused(r"b/3.png' cannot be read \((FileNotFoundError|No such file)"):
        list(feeding(data, 4).in_order())


def test_the_size_that_networks_see(tmp_path):
    data = load(write_images(tmp_path / "small.npz", train=6, test=6, val=0), image_size=20)
    for augment in ("none", "crop-flip", "resized-crop"):
        assert [images.shape for images, _ in feeding(data, 6, augment=augment).shuffled(0, 1)] == [(6, 3, 20, 20)]
    # Padding comes after the resize: 4 pixels of 20, not of 8.
    feed = feeding(data, 6, augment="crop-flip")
    black = data.normalise(torch.zeros(1, 3, 20, 20, dtype=torch.uint8))[0, :, 0, 0]
    passes = [images.transpose(1, 3) == black for epoch in (1, 2) for images, _ in feed.shuffled(0, epoch)]
    edges = [each.flatten(2).all(2).sum(1).max().item() for each in passes]
    assert 0 < max(edges) <= 4


class Arrivals(TorchDispatchMode):
    """Counts the tensors that are brought from the CPU to another device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.count += args[0].device.type == "cpu" != out.device.type
        return out


@pytest.mark.parametrize("augment", ["none", "flip", "crop-flip"])
@pytest.mark.parametrize("size", [None, 12])
def test_resident_batches_neither_wait_for_the_device_nor_copy_to_it(augment, size):
    split = ArraySplit(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), torch.arange(20) % 4)
    third = torch.full((3,), 1 / 3)
    data = ImageData("blank", split, split, 4, tuple("abcd"), third, third, "flip", size=size)
    feed = feeding(data, 4, device=torch.device("meta"), augment=augment)
    with Arrivals() as before:
        passing = feed.shuffled(0, 1)
        batches = [next(passing)]
    assert before.count > 0  # order and random numbers of the whole pass
    with Arrivals() as arrivals:
        batches += passing
    assert arrivals.count == 0
    side = size or 8
    assert [(images.shape, images.device.type) for images, _ in batches] == [((4, 3, side, side), "meta")] * 5
    assert all(labels.shape == (4,) and labels.device.type == "meta" for _, labels in batches)


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_images_are_resident_up_to_a_share_of_the_free_memory(monkeypatch, share):
    pixels = torch.zeros(1000, dtype=torch.uint8)
    free = int(len(pixels) / (RESIDENT_SHARE * share))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    assert _fits(pixels, torch.device("cuda")) is (share < 1)
    assert _fits(pixels, CPU)


def test_what_goes_to_a_gpu_is_pinned_first_and_not_waited_for():
    values = MagicMock(device=CPU)
    values.pin_memory.return_value = values
    for device in (torch.device("cuda"), CPU):
        upload(values, device)
    names = [name for name, *_ in values.method_calls]
    assert names == ["pin_memory", "to", "to"]
    assert [call.kwargs.get("non_blocking", False) for call in values.to.mock_calls] == [True, False]
    assert [call.args[0].type for call in values.to.mock_calls] == ["cuda", "cpu"]
