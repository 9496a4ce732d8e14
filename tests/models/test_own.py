import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import pathex
from pathex import models
from pathex.errors import InvalidInput


def layers(model):
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def weights_of(model):
    return sum(layer.weight.numel() for layer in layers(model))


def test_resnet20_parameters():
    model = models.create("resnet20")
    assert weights_of(model) == 270_896  # as published
    block = ["conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"]
    expected = ["conv.weight", "bn.weight", "bn.bias"]
    for number in range(9):
        expected += [f"blocks.{number}.{name}" for name in block]
        if number in {3, 6}:
            expected += [f"blocks.{number}.shortcut.{name}" for name in ("0.weight", "1.weight", "1.bias")]
    assert [name for name, _ in model.named_parameters()] == [*expected, "fc.weight", "fc.bias"]
    for depth in (20, 32, 44, 56):
        model = models.create(f"resnet{depth}", width=2)
        assert len(model.blocks) == (depth - 2) // 2
        assert len(layers(model)) - 2 == depth  # without two shortcuts


@pytest.mark.parametrize(("name", "options"), [("resnet20", {}), ("resnet18_tiny", {"width": 8, "num_classes": 200})])
def test_initialization_is_kaiming_normal(name, options):
    torch.manual_seed(0)
    model = models.create(name, **options)
    for layer in layers(model):
        if layer.weight.numel() > 2000:
            assert layer.weight.std().item() == pytest.approx((2 / layer.weight[0].numel()) ** 0.5, rel=0.1)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()


def test_stages_halve_the_image_and_double_the_channels():
    model = models.create("resnet20", width=4).eval()
    shapes = []
    for number in (2, 5, 8):
        model.blocks[number].register_forward_hook(lambda m, x, y: shapes.append(tuple(y.shape[1:])))
    model(torch.zeros(2, 3, 32, 32))
    assert shapes == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]
    assert models.create("resnet18_tiny", width=8).layer1(torch.zeros(1, 8, 64, 64)).shape == (1, 8, 64, 64)


@pytest.mark.parametrize("depth", [11, 16, 19])
def test_vgg(depth):
    model = models.create(f"vgg{depth}_bn", num_classes=7, width=0.05)
    *convolutions, last = layers(model)
    assert isinstance(last, nn.Linear)
    assert len(convolutions) == depth - 3  # the name counts three linear layers of the original
    assert all(isinstance(conv, nn.Conv2d) and conv.bias is None for conv in convolutions)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == len(convolutions)
    if depth == 16:
        channels = [conv.out_channels for conv in layers(models.create("vgg16_bn"))[:-1]]
        assert channels == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_tiny_resnets_are_those_of_torchvision_but_for_the_stem(depth):
    torch.manual_seed(0)
    model = models.create(f"resnet{depth}_tiny", num_classes=7).eval()
    other = torchvision.models.get_model(f"resnet{depth}", num_classes=7)
    other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    other.load_state_dict(model.state_dict())
    assert list(model.state_dict()) == list(other.state_dict())
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(images), other.eval()(images))


@pytest.mark.parametrize("width", [3, 4])
def test_padded_shortcut_has_no_parameters_and_adds_every_second_position(width):
    model = models.create("resnet20", width=width, shortcut="pad").eval()
    assert not any("shortcut" in name for name in model.state_dict())
    block = model.blocks[3]
    nn.init.zeros_(block.bn2.weight)  # what is left is the shortcut
    images = torch.rand(2, width, 6, 6)
    expected = torch.zeros(2, 2 * width, 3, 3)
    for channel in range(width):
        for row in range(3):
            for column in range(3):
                expected[:, channel + width // 2, row, column] = images[:, channel, 2 * row, 2 * column]
    torch.testing.assert_close(block(images), expected)
    model = models.CifarResNet(8, width=width, shortcut="pad")
    result = pathex.prune(model, "px", sparsity=0.9, data=torch.rand(4, 3, 8, 8), rounds=2, progress=False)
    assert result.mask.kept == round(0.1 * weights_of(model)) and not result.report.dead_layers


def test_names_that_count_the_blocks_of_a_stage_fit_exactly(tmp_path):
    source = models.create("resnet32", width=2)
    renamed = {}
    for name, value in source.state_dict().items():
        parts = name.split(".")
        if parts[0] == "blocks":
            stage, number = divmod(int(parts[1]), 5)
            parts[:2] = [f"layer{stage + 1}", str(number)]
        renamed["module." + ".".join({"conv": "conv1", "bn": "bn1", "fc": "linear"}.get(p, p) for p in parts)] = value
    torch.save({"state_dict": renamed, "best_prec1": 1.0}, tmp_path / "w.th")
    model = models.create("resnet32", width=2, weights=tmp_path / "w.th")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in source.state_dict().items())
    # A deeper network's fourth block must not pass for the first of the next stage.
    with pytest.raises(InvalidInput, match=r"unexpected: layer1.3.conv1.weight"):
        models.create("resnet20", width=2, weights=tmp_path / "w.th")


@pytest.mark.data
@pytest.mark.skipif("PATHEX_DATA" not in os.environ, reason="PATHEX_DATA is not set")
def test_published_resnet20_reaches_its_accuracy():
    folder = Path(os.environ["PATHEX_DATA"])
    model = models.create("resnet20", shortcut="pad", weights=folder / "checkpoints" / "resnet20-cifar10-optionA.th")
    with np.load(folder / "cifar10.npz") as archive:
        pixels, labels = torch.from_numpy(archive["test_images"]), torch.from_numpy(archive["test_labels"]).flatten()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    model.eval()
    correct = 0
    with torch.no_grad():
        for part, expected in zip(pixels.split(500), labels.split(500), strict=True):
            images = (part.permute(0, 3, 1, 2).float() / 255 - mean) / std
            correct += int((model(images).argmax(1) == expected).sum())
    assert len(labels) == 10_000
    assert correct / 10_000 == pytest.approx(0.9173, abs=0.0005)


@pytest.mark.parametrize("name", models.names())
def test_every_name_is_described_and_made(name):
    assert "\n" not in models.describe(name)
    model = models.create(name, num_classes=5, in_channels=1, width=1 if name.startswith("resnet") else 0.02)
    for size in (28, 32):
        assert model(torch.zeros(2, 1, size, size)).shape == (2, 5)
