"""Scores of a segmentation network: DeepLabV3+ with label maps in which 255 stands for no class."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathex
from pathex.errors import InvalidInput

smp = pytest.importorskip("segmentation_models_pytorch")

CLASSES = 5
# phew walks along single paths, which takes most of a minute here; px-cvpr24 is defined for ReLU only.
METHODS = [name for name in pathex.methods() if name not in {"phew", "px-cvpr24"}]
OPEN = {"synflow", "synflow-l2", "px-literal"}
DATA_ONLY = {"px": {}, "px-literal": {}, "ntk-diagonal": {"projections": 2}, "ntk-sap": {"inputs": "data"}}


def deeplab(**options):
    torch.manual_seed(0)
    return smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, encoder_output_stride=8, classes=CLASSES, **options)


@pytest.fixture(scope="module")
def model():
    return deeplab().eval()


@pytest.fixture(scope="module")
def pairs():
    generator = torch.Generator().manual_seed(1)
    images, labels = (
        torch.randn(4, 3, 24, 32, generator=generator),
        torch.randint(0, CLASSES, (4, 24, 32), generator=generator),
    )
    labels[0, :9], labels[:, :, 27:] = 255, 255
    return images, labels


@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_prunes_it(model, pairs, method):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = pathex.prune(model, method, sparsity=0.2, data=pairs, rounds=1, progress=False)
    assert result.mask.kept == round(0.8 * result.mask.total)
    # SynFlow and px-literal find little in the convolution that carries the early features to the decoder.
    assert set(result.report.dead_layers) <= ({"decoder.block1.0.weight"} if method in OPEN else set())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_snip_is_the_derivative_of_the_mean_over_labelled_pixels(pairs):
    model = deeplab(decoder_aspp_dropout=0.0).double()
    images, labels = pairs[0].double(), pairs[1]
    scores = pathex.score(model.eval(), "snip", (images, labels))
    model.train()
    logs = model(images).log_softmax(1)
    picked = [logs[n, labels[n, i, j], i, j] for n, i, j in (labels != 255).nonzero().tolist()]
    torch.stack(picked).mean().backward()
    weights = dict(model.named_parameters())
    for name, score in scores.items():
        torch.testing.assert_close(score, (weights[name] * weights[name].grad).abs().detach(), rtol=1e-8, atol=1e-14)


def test_batches_weigh_as_their_labelled_pixels(pairs):
    # Without statistics of the batch, the mean over all pixels does not depend on how the images are batched.
    model = deeplab().double().eval()
    images, labels = pairs[0].double(), pairs[1]
    batches = [(images[:1], labels[:1]), (images[1:], labels[1:])]
    for method in ("snip", "grasp"):
        whole = pathex.score(model, method, (images, labels), calibration="running")
        cut = pathex.score(model, method, batches, calibration="running")
        assert whole.keys() == cut.keys()
        for name, score in whole.items():
            torch.testing.assert_close(cut[name], score, rtol=1e-6, atol=float(score.abs().max()) * 1e-9)


@pytest.mark.parametrize("method", DATA_ONLY)
def test_methods_that_see_data_only_do_not_see_labels(model, pairs, method):
    options = DATA_ONLY[method]
    with_labels, without = (pathex.score(model, method, data, **options) for data in (pairs, pairs[0]))
    assert all(torch.equal(score, without[name]) for name, score in with_labels.items())


def test_px_sums_over_the_outputs_of_all_pixels(pairs):
    # Every layer on all paths holds the whole sum: the first convolution, and the last, whose outputs are pixels.
    model = deeplab().double().eval()
    scores = pathex.score(model, "px", pairs[0].double())
    assert isinstance(model.encoder.features[0][0], nn.Conv2d)
    first, last = scores["encoder.features.0.0.weight"].sum(), scores["segmentation_head.0.weight"].sum()
    torch.testing.assert_close(first, last, rtol=1e-9, atol=0)
    # Without statistics of the batch the images do not see each other, and their sums add up.
    parts = [pathex.score(model, "px", part, calibration="running") for part in pairs[0].double().split([1, 3])]
    for name, score in pathex.score(model, "px", pairs[0].double(), calibration="running").items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], score, rtol=1e-9, atol=float(score.max()) * 1e-13)


@pytest.mark.filterwarnings("ignore:.* of memory, more than")
def test_px_takes_as_little_memory_as_it_is_given(pairs):
    model = deeplab().double().eval()
    images = pairs[0][:2].double()
    roomy, tight = (pathex.score(model, "px", images, memory=memory) for memory in ("4GiB", 1))
    for name, score in roomy.items():
        torch.testing.assert_close(tight[name], score, rtol=1e-8, atol=float(score.max()) * 1e-12)


def test_labels_outside_the_classes_are_refused(model, pairs):
    images, labels = pairs
    wrong = labels.clone()
    wrong[2, 3, 4] = CLASSES
    for method in ("snip", "grasp", "fisher-diagonal", "prospr", "force", "iterative-snip"):
        with pytest.raises(InvalidInput, match=f"label {CLASSES} is no class of an output with {CLASSES} classes"):
            pathex.score(model, method, (images, wrong))
        with pytest.raises(InvalidInput, match=r"labels \([14],\) .* do not fit outputs"):
            pathex.score(model, method, (images, labels[:, 0, 0].clamp(max=CLASSES - 1)))


def test_one_image_needs_fixed_statistics(model, pairs):
    # The pooled branch of DeepLabV3+ has one value a channel for one image.
    one = (pairs[0][:1], pairs[1][:1])
    with pytest.raises(InvalidInput, match="needs more than one value a channel"):
        pathex.score(model, "snip", one)
    assert F.relu(pathex.score(model, "snip", one, calibration="running")["segmentation_head.0.weight"]).any()
