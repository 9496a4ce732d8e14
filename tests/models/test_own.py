"""The project's own networks."""

import pytest
import torch
from torch import nn

from pathex import models
from pathex.errors import InvalidInput

DATA_FREE_INPUT = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


def weights_of(model):
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))


def test_resnet20_has_the_published_number_of_weights():
    assert weights_of(models.create("resnet20")) == 270_896


def test_resnet20_parameter_names():
    names = [name for name, _ in models.create("resnet20", width=4).named_parameters()]
    block = [f"{layer}.{kind}" for layer in ("conv1", "bn1", "conv2", "bn2") for kind in ("weight", "bias")]
    block = [name for name in block if name not in {"conv1.bias", "conv2.bias"}]
    expected = ["conv.weight", "bn.weight", "bn.bias"]
    for number in range(9):
        expected += [f"blocks.{number}.{name}" for name in block]
        if number in {3, 6}:
            expected += [f"blocks.{number}.shortcut.{name}" for name in ("0.weight", "1.weight", "1.bias")]
    assert names == [*expected, "fc.weight", "fc.bias"]


@pytest.mark.parametrize(("name", "blocks"), [("resnet20", 9), ("resnet32", 15), ("resnet44", 21), ("resnet56", 27)])
def test_depth_counts_convolutions_and_the_linear_layer(name, blocks):
    model = models.create(name, width=2)
    assert len(model.blocks) == blocks
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) and "shortcut" not in n for n, m in model.named_modules()) == int(
        name.removeprefix("resnet")
    )


def test_initialization_is_kaiming_normal():
    torch.manual_seed(0)
    model = models.create("resnet20")
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.numel() > 2000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()


def test_stages_halve_the_image_and_double_the_channels():
    model = models.create("resnet20", width=4).eval()
    shapes = []
    for number in (2, 5, 8):
        model.blocks[number].register_forward_hook(lambda m, x, y: shapes.append(tuple(y.shape[1:])))
    model(DATA_FREE_INPUT)
    assert shapes == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]


@pytest.mark.parametrize("name", ["vgg11_bn", "vgg16_bn", "vgg19_bn"])
def test_vgg_depth_norms_and_single_linear_layer(name):
    model = models.create(name, num_classes=7, width=0.05)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    # The name counts three linear layers of the original.
    assert len(convolutions) == int(name[3:5]) - 3
    assert all(conv.bias is None for conv in convolutions)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == len(convolutions)
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == 1


def test_vgg16_widths():
    model = models.create("vgg16_bn", num_classes=100)
    channels = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert channels == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize(("name", "width"), [("resnet20", 2), ("vgg11_bn", 0.05)])
def test_grey_images_of_28_and_32_pixels(name, width, size):
    model = models.create(name, num_classes=5, in_channels=1, width=width)
    assert model(torch.zeros(2, 1, size, size)).shape == (2, 5)


def test_same_seed_same_network():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(models.create("resnet20", width=2).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("name", models.names())
def test_every_name_is_described_and_made(name):
    assert "\n" not in models.describe(name)
    assert models.create(name, num_classes=3, width=1 if name.startswith("resnet") else 0.02).fc.out_features == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.create("resnet200"), "'resnet200'. Did you mean 'resnet20'"),
        (lambda: models.create("resnet20", norm=3), "option of model 'resnet20': 'norm'. Known: width"),
        (lambda: models.create("resnet20", width=0), "'width' .* positive integer, got 0"),
        (lambda: models.create("resnet20", width=True), "got True"),
        (lambda: models.create("vgg11_bn", width=-1.0), "positive number, got -1.0"),
        (lambda: models.create("resnet20", num_classes=0), "num_classes must be a positive integer, got 0"),
        (lambda: models.create("resnet20", in_channels=1.5), "in_channels must be a positive integer, got 1.5"),
        (lambda: models.create("resnet20", weights="imagenet"), "own models have no tags"),
        (lambda: models.describe("resnet200"), "Did you mean 'resnet20'"),
        (lambda: models.CifarResNet(21), "got 21"),
        (lambda: models.CifarVGG(12), "got 12"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
