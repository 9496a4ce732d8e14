"""Scores of a segmentation network: DeepLabV3+ with label maps in which 255 stands for no class."""

import copy

import pytest
import torch
from torch import nn

import pathex

smp = pytest.importorskip("segmentation_models_pytorch")

CLASSES = 5
# phew walks along single paths, which takes most of a minute here; px-cvpr24 is defined for ReLU only.
METHODS = [name for name in pathex.methods() if name not in {"phew", "px-cvpr24"}]
OPEN = {"synflow", "synflow-l2", "px-literal"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    options = {"encoder_weights": None, "encoder_output_stride": 8, "classes": CLASSES}
    return smp.DeepLabV3Plus("mobilenet_v2", **options).eval()


@pytest.fixture(scope="module")
def pairs():
    torch.manual_seed(1)
    images, labels = torch.randn(4, 3, 24, 32), torch.randint(0, CLASSES, (4, 24, 32))
    labels[0, :9], labels[:, :, 27:] = 255, 255
    return images, labels


@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_prunes_it(model, pairs, method):
    few = {"projections": 2} if "projections" in pathex.methods(method).options else {}
    result = pathex.prune(model, method, sparsity=0.2, data=pairs, rounds=1, progress=False, **few)
    assert result.mask.kept == round(0.8 * result.mask.total)
    # SynFlow and px-literal find little in the convolution that carries the early features to the decoder.
    assert set(result.report.dead_layers) <= ({"decoder.block1.0.weight"} if method in OPEN else set())


def test_px_sums_over_the_outputs_of_all_pixels(model, pairs):
    # Every layer on all paths holds the whole sum: the first convolution, and the last, whose outputs are pixels.
    scores = pathex.score(copy.deepcopy(model).double(), "px", pairs[0].double())
    assert isinstance(model.encoder.features[0][0], nn.Conv2d)
    first, last = scores["encoder.features.0.0.weight"].sum(), scores["segmentation_head.0.weight"].sum()
    torch.testing.assert_close(first, last, rtol=1e-9, atol=0)
