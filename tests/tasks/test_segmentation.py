import json
import warnings
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brute_force import segmentation as twin
from pathex.errors import PathexWarning, UnknownName
from pathex.tasks import build
from pathex.tasks.segmentation import Segmentation, SlidingWindow, class_iou, pixel_loss, window_starts
from pathex.train import TrainOptions, fabric
from refusals import refused
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
    return build("segmentation", model, "voc2012", data_options={"root": str(root)}, **options)


def metric_of(num_classes):
    return Segmentation.metric(SimpleNamespace(data=SimpleNamespace(num_classes=num_classes)), CPU)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_the_metric_is_that_of_one_confusion_matrix_over_all_images(num_classes, seed):
    generator = torch.Generator().manual_seed(seed)
    metric = metric_of(num_classes)
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


def test_a_class_that_is_nowhere_does_not_count():
    assert class_iou(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])) == [3 / 4, 4 / 5, None]
    metric = metric_of(3)
    metric.update(torch.tensor([[[[9.0]], [[0.0]], [[0.0]]]]), torch.zeros(1, 1, 1, dtype=torch.long))
    assert float(metric.compute()) == 1.0


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


def test_the_task_follows_from_the_data(root):
    task = build("auto", TINY, "voc2012", seed=0, data_options={"root": str(root)}, task_options={"crop": 32})
    assert isinstance(task, Segmentation)
    assert (task.metric_name, task.window.crop, task.window.side, task.stride) == ("miou", 32, 32, 21)
    assert task.example.shape == (1, 3, 32, 32)
    assert not task.model.training
    json.dumps(task.facts())
    assert task.facts()["classes"][20] == "tvmonitor"


def test_validation_images_are_neither_trained_on_nor_pruned_with(root):
    task = made(root, validation=0.3)
    train, held_out = set(task.train_indices.tolist()), set(task.validation_indices.tolist())
    assert not train & held_out
    assert train | held_out == set(range(13))
    assert len(held_out) == 4
    assert set(task.pruning_set(9, seed=0).indices) <= train
    assert task.feed("validation", CPU, 4).images == 4
    assert made(root).feed("validation", CPU, 4) is None


def test_scores_see_batches_of_four_and_never_one_image(root):
    task = made(root)
    chosen = task.pruning_set(3, 0)
    assert len(chosen.images) == 9
    batches = task.scoring_batches(chosen)
    assert [len(images) for images, _ in batches] == [4, 5]
    assert torch.equal(torch.cat([images for images, _ in batches]), chosen.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), chosen.labels)


def test_training_learns_and_the_whole_of_the_test_images_is_measured(root, tmp_path):
    task = made(root, validation=0.2, task_options={"crop": 24, "stride": 10})
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


def test_the_crop_is_measured_where_asked_for(root, tmp_path):
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"task_options": {"size": 3}}, "unknown option 'size' of task .* Known: crop, evaluation, stride"),
        ({"task_options": {"crop": 0}}, "option 'crop' of task 'segmentation' must be a positive integer, got 0"),
        ({"task_options": {"crop": 20, "stride": 21}}, "'stride' of task .* must be an integer in 1..20, got 21"),
        ({"task_options": {"evaluation": "half"}}, "unknown evaluation 'half'. Known: crop, full"),
        ({"model": "tiny_segmenter:half_size"}, r"gives \(1, 21, .* segmentation needs \(1, 21, "),
        ({"model": "tiny_segmenter:four_channels"}, r"fails on \d+ x \d+ pixels: RuntimeError"),
        ({"model": "torchvision:squeezenet1_1"}, r"gives \(1, 21\) for one image"),
    ],
)
def test_options_and_networks_that_cannot_be_used(root, call, message):
    with refused(message):
        made(root, **call)


def test_data_loss_and_augmentation_that_cannot_be_used(root):
    with refused("data 'fashion-mini' has one class an image; task 'segmentation' needs"):
        build("segmentation", TINY, "fashion-mini", seed=0)
    with refused("loss 'mse': segmentation has auto and cross-entropy"):
        made(root).loss("mse", 0.0)
    with refused("unknown augment 'crop-flip'", UnknownName):
        made(root).feed("train", CPU, 4, augment="crop-flip")


@pytest.mark.data
def test_the_subset_with_a_pre_trained_backbone(data_folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PathexWarning)  # that the decoder is new is what is wanted
        settings = {
            "weights": str(data_folder / "checkpoints" / "mobilenet_v2-features-imagenet.safetensors"),
            "model_options": {"encoder_name": "mobilenet_v2"},
            "data_options": {"root": str(data_folder), "image_size": 48},
        }
        task = build("auto", "smp:DeepLabV3Plus", "voc2012", seed=0, task_options={"crop": 49}, **settings)
    with pytest.warns(PathexWarning, match=r"show aeroplane \(0\), bicycle \(0\)"):
        chosen = task.pruning_set(1, 0)
    shown = {label for labels in chosen.labels for label in labels.unique().tolist()}
    assert {5, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 20} <= shown
    options = TrainOptions(epochs=2, batch_size=8, lr=0.02, head_lr=0.2, augment="auto")
    model, rows = task.train(options, fabric=fabric("cpu"), folder=tmp_path)
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    result = task.test(model, fabric=fabric("cpu"), batch_size=8)
    assert result["test_images"] == 40
    assert result["test_miou"] > 0.03  # background alone gives about that: 0.57 of the pixels, 17 classes


@pytest.fixture
def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 5, padding=2)).double().eval()


@pytest.mark.parametrize("size", [(13, 17), (8, 8), (5, 20), (20, 6), (4, 3), (8, 9)])
@pytest.mark.parametrize(("stride", "side", "at_once"), [(8, 8, 1), (5, 8, 3), (3, 11, 64)])
def test_every_pixel_is_the_mean_over_its_windows(network, size, stride, side, at_once):
    images = torch.randn(2, 2, *size, dtype=torch.float64)
    with torch.no_grad():
        found = SlidingWindow(network, 8, stride, side, at_once)(images)
    assert found.shape == (2, 3, *size)
    for image, logits in zip(images.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(logits, twin.averaged(plain(network), image, 8, stride, side, 3), atol=1e-12)


def test_a_small_image_is_seen_once_padded_with_zeros_in_the_mode_of_the_network(network):
    image = torch.randn(1, 2, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        direct = network(nn.functional.pad(image, (0, 1, 0, 2)))[:, :, :6, :7]
        assert torch.equal(SlidingWindow(network, 8, 3, 8)(image), direct)
    assert not SlidingWindow(network, 8, 8, 8).training
    assert SlidingWindow(network.train(), 8, 8, 8).training


def test_windows_reach_the_end_and_not_beyond():
    for size, window in product(range(1, 30), range(1, 12)):
        for stride in range(1, window + 1):
            starts = window_starts(size, window, stride)
            assert starts == sorted(set(starts))
            covered = {place for start in starts for place in range(start, start + window)}
            assert covered == set(range(max(size, window)))
