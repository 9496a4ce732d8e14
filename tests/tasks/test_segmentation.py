import json
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brute_force import segmentation as twin
from pathex.data import SegmentationData
from pathex.tasks import build
from pathex.tasks.segmentation import (
    Segmentation,
    SegmentationLoader,
    SlidingWindow,
    class_iou,
    pixel_loss,
    window_starts,
)
from pathex.train import TrainOptions, cut_batches, fabric, share_of
from refusals import refused
from small_images import write_pairs
from voc_folder import write_voc

pytestmark = [
    pytest.mark.filterwarnings("ignore:data 'voc2012'.*published:pathex.errors.PathexWarning"),
    pytest.mark.filterwarnings("ignore:data 'voc2012'. fewer than:pathex.errors.PathexWarning"),
]
CPU = torch.device("cpu")
TINY = "tiny_segmenter:TinySegmenter"
DEEPLAB = {"encoder_name": "mobilenet_v2", "encoder_output_stride": 8}


def plain(network, dtype=torch.float64):
    """The network as the twin calls it, on one window."""

    def call(tile):
        with torch.no_grad():
            return network(torch.from_numpy(tile).to(dtype)[None])[0].double().numpy()

    return call


@pytest.fixture
def root(tmp_path):
    write_voc(tmp_path, 13, 4)
    return tmp_path


def made(root, model=TINY, **options):
    options = {"seed": 0, "task_options": {"crop": 32}, **options}
    return build("auto", model, "voc2012", data_options={"root": str(root)}, **options)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_the_metric_is_that_of_one_confusion_matrix_over_all_images(num_classes, seed):
    generator = torch.Generator().manual_seed(seed)
    metric = Segmentation.metric(SimpleNamespace(data=SimpleNamespace(num_classes=num_classes)), CPU)
    predictions, truths = [], []

    def below(limit, size=()):
        return torch.randint(limit, size, generator=generator)

    for size in ((2, 5, 7), (1, 9, 4), (3, 5, 7)):
        # Some classes are missing from predictions, some from truths, some from both.
        logits = torch.randn(size[0], num_classes, *size[1:], generator=generator)
        logits[:, int(below(num_classes))] -= 20
        labels = below(1 + int(below(num_classes)), size)
        labels[torch.rand(size, generator=generator) < 0.3] = 255
        labels[0, 0, 0] = 0
        metric.update(logits, labels)
        predictions += list(logits.argmax(1).numpy())
        truths += list(labels.numpy())
    expected = twin.mean_iou(predictions, truths, num_classes)
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)  # torchmetrics divides in float32
    shares = [share for share in class_iou(metric.confmat) if share is not None]
    assert sum(shares) / len(shares) == pytest.approx(expected, abs=1e-12)
    assert class_iou(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])) == [3 / 4, 4 / 5, None]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_mean_over_labelled_pixels(smoothing):
    torch.manual_seed(0)
    outputs, labels = torch.randn(3, 4, 5, 6, dtype=torch.float64), torch.randint(0, 4, (3, 5, 6))
    labels[torch.rand(3, 5, 6) < 0.4] = 255
    every = []
    for image, row, column in product(range(3), range(5), range(6)):
        if (label := int(labels[image, row, column])) != 255:
            logs = outputs[image, :, row, column].log_softmax(0)
            every.append(-(1 - smoothing) * logs[label] - smoothing * logs.mean())
    expected = torch.stack(every).mean()
    torch.testing.assert_close(pixel_loss(outputs, labels, label_smoothing=smoothing), expected, atol=1e-12, rtol=0)
    # Without a labelled pixel it is zero, and so is its gradient.
    outputs.requires_grad_()
    loss = pixel_loss(outputs, torch.full((3, 5, 6), 255), label_smoothing=smoothing)
    loss.backward()
    assert loss.item() == 0 and not outputs.grad.any()


def test_the_task_follows_from_the_data_and_scores_see_batches_of_four_and_never_one_image(root):
    task = made(root)
    assert isinstance(task, Segmentation) and not task.model.training
    assert (task.metric_name, task.window.crop, task.window.side, task.stride) == ("miou", 32, 32, 21)
    assert task.example.shape == (1, 3, 32, 32)
    json.dumps(task.facts())
    assert task.facts()["classes"][20] == "tvmonitor"
    assert task.feed("validation", CPU, 4) is None
    chosen = task.pruning_set(3, 0)
    assert len(chosen.images) == 9
    batches = task.scoring_batches(chosen)
    assert [len(images) for images, _ in batches] == [4, 5]
    assert torch.equal(torch.cat([images for images, _ in batches]), chosen.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), chosen.labels)


def test_training_learns_without_validation_images_and_whole_test_images_or_crops_are_measured(root, tmp_path):
    task = made(root, validation=0.2, task_options={"crop": 24, "stride": 10})
    train, held_out = set(task.train_indices.tolist()), set(task.validation_indices.tolist())
    assert not train & held_out and train | held_out == set(range(13))
    assert len(held_out) == task.feed("validation", CPU, 4).images == 3
    assert set(task.pruning_set(9, seed=0).indices) <= train
    options = TrainOptions(epochs=25, batch_size=4, lr=0.2, augment="auto", augment_options={"max_scale": 1.2})
    model, rows = task.train(options, fabric=fabric("cpu"), folder=tmp_path)
    assert {"train_miou", "val_miou"} <= set(rows[-1])
    result = task.test(model, fabric=fabric("cpu"), batch_size=3)
    assert result["test_images"] == 4
    predictions, truths = [], []
    for number in range(4):
        image, labels = task.data.test.sample(number)
        pixels = task.data.normalise(image[None])[0].numpy()
        predictions.append(twin.averaged(plain(task.model.eval(), torch.float32), pixels, 24, 10, 24, 21).argmax(0))
        truths.append(labels.numpy())
    assert result["test_miou"] == pytest.approx(twin.mean_iou(predictions, truths, 21), abs=1e-4)
    assert result["test_miou"] > 0.5  # the colours of the rectangles tell their classes
    known = [share for share in result["test_class_iou"].values() if share is not None]
    assert result["test_miou"] == pytest.approx(sum(known) / len(known), abs=1e-6)
    task = made(root, task_options={"crop": 20, "evaluation": "crop"})
    predictions, truths = [], []
    for number in range(4):
        image, labels = task.window.fitted(task.data.test.sample(number))
        with torch.no_grad():
            predictions.append(task.model(task.data.normalise(image[None]))[0].argmax(0).numpy())
        truths.append(labels.numpy())
    found = task.test(task.model, fabric=fabric("cpu"), batch_size=3)["test_miou"]
    assert found == pytest.approx(twin.mean_iou(predictions, truths, 21), abs=1e-4)


def test_deeplab_gets_multiples_that_it_takes_and_never_one_image(root, tmp_path):
    task = made(root, "smp:DeepLabV3Plus", model_options=DEEPLAB, task_options={"crop": 33}, validation=0.25)
    assert (task.window.crop, task.window.side) == (33, 40)  # multiples of the output stride
    assert len(task.train_indices) == 10
    # 10 images by 3 leave one, whose pooled branch would have one value a channel.
    options = TrainOptions(epochs=1, batch_size=3, lr=0.01, head_lr=0.1, augment="auto")
    model, rows = task.train(options, fabric=fabric("cpu"), folder=tmp_path)
    assert np.isfinite(rows[0]["train_loss"])
    assert 0 <= task.test(model, fabric=fabric("cpu"), batch_size=3)["test_miou"] <= 1
    backbone, head = task.groups(options)
    encoder = {id(parameter) for parameter in task.model.encoder.parameters()}
    assert {id(parameter) for parameter in backbone["params"]} == encoder
    assert head["lr"] == 0.1


def asked(**options):
    return partial(made, task_options=options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (asked(size=3), "unknown option of task 'segmentation': 'size'.* Known: crop, evaluation, stride"),
        (asked(crop=0), "option 'crop' of task 'segmentation' must be a positive integer, got 0"),
        (asked(crop=20, stride=21), "'stride' of task .* must be an integer in 1..20, got 21"),
        (asked(evaluation="half"), "unknown evaluation 'half'. Known: crop, full"),
        (lambda root: made(root, "tiny_segmenter:half_size"), r"gives \(1, 21, .* segmentation needs \(1, 21, "),
        (lambda root: made(root, "tiny_segmenter:four_channels"), r"fails on \d+ x \d+ pixels: RuntimeError"),
        (lambda root: made(root, "torchvision:squeezenet1_1"), r"gives \(1, 21\) for one image"),
        (lambda root: build("segmentation", TINY, "fashion-mini", seed=0), "'fashion-mini' has one class an image"),
        (lambda root: made(root).loss("mse", 0.0), "loss 'mse': segmentation has auto and cross-entropy"),
        (lambda root: made(root).feed("train", CPU, 4, augment="crop-flip"), "unknown augment 'crop-flip'"),
    ],
)
def test_what_cannot_be_used(root, call, message):
    with refused(message):
        call(root)


@pytest.fixture
def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 5, padding=2)).double().eval()


@pytest.mark.parametrize("size", [(13, 17), (8, 8), (5, 20), (20, 6), (4, 3), (8, 9)])
@pytest.mark.parametrize(("stride", "side", "at_once"), [(8, 8, 1), (5, 8, 3), (3, 11, 64)])
def test_every_pixel_is_the_mean_over_its_windows(network, size, stride, side, at_once):
    images = torch.randn(2, 2, *size, dtype=torch.float64)
    windows = SlidingWindow(network, 8, stride, side, at_once)
    with torch.no_grad():
        found = windows(images)
    assert found.shape == (2, 3, *size)
    for image, logits in zip(images.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(logits, twin.averaged(plain(network), image, 8, stride, side, 3), atol=1e-12)
    assert not windows.training and SlidingWindow(network.train(), 8, stride, side).training


def test_windows_reach_the_end_and_not_beyond():
    for size, window in product(range(1, 30), range(1, 12)):
        for stride in range(1, window + 1):
            starts = window_starts(size, window, stride)
            assert starts == sorted(set(starts))
            covered = {place for start in starts for place in range(start, start + window)}
            assert covered == set(range(max(size, window)))


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


def test_the_centre_is_seen_or_moved_scaled_and_mirrored(data):
    for images, labels in loader(data).shuffled(0, 1):
        for image, marks, number in zip(images, labels, numbers(images), strict=True):
            pair = data.train.sample(number)
            height, width = pair[1].shape
            corner = ((height - 10) // 2, (width - 10) // 2)
            expected = twin.window(*(part.numpy() for part in pair), *corner, 10, 10, (128, 128, 128))
            np.testing.assert_array_equal(marks.numpy(), expected[1])
            np.testing.assert_allclose(image.numpy(), expected[0] / 127.5 - 1, atol=1e-6)

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
        ({"augment_options": {"scale": 2}}, "augment 'scale-crop': 'scale'.* Known: max_scale, min_scale"),
        ({"augment_options": {"min_scale": 0}}, r"'min_scale' of augment 'scale-crop' must lie in \(0, 10\], got 0"),
        ({"augment_options": {"min_scale": 3.0}}, "min_scale 3.0 of augment 'scale-crop' is above max_scale 2.0"),
        ({"augment": "none", "augment_options": {"min_scale": 1.0}}, r"augment 'none': 'min_scale'. Known: none"),
    ],
)
def test_what_cannot_be_loaded(data, options, message):
    with refused(message):
        loader(data, **{"augment": "scale-crop", **options})
