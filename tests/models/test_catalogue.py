import urllib.error
from itertools import product
from unittest.mock import MagicMock

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import pathex
from pathex import models
from pathex.errors import PathexWarning
from refusals import refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet200", {}, "'resnet200'. Did you mean 'resnet20'"),
        ("resnet20", {"norm": 3}, "option of model 'resnet20': 'norm'. Known: shortcut, width"),
        ("resnet20", {"width": 0}, "'width' .* positive integer, got 0"),
        ("resnet20", {"width": True}, "got True"),
        ("vgg11_bn", {"width": -1.0}, "positive number, got -1.0"),
        ("resnet20", {"num_classes": 0}, "num_classes must be an integer in 1..1000000, got 0"),
        ("resnet20", {"in_channels": 1.5}, "in_channels must be a positive integer, got 1.5"),
        ("resnet20", {"weights": "imagenet"}, "own models have no tags"),
        ("resnet20", {"shortcut": "zero"}, "'shortcut' .* conv or pad, got 'zero'"),
        ("resnet18_tiny", {"width": 0}, "'width' .* positive integer, got 0"),
        ("timm:resnet5000", {}, "unknown timm model 'resnet5000'. Did you mean resnet50"),
        ("timm:resnet18.a1_in2k", {}, "unknown tag of timm model .* a1_in1k"),
        ("timm:test_resnet", {"nothing": 1}, "cannot be made .*'nothing'"),
        ("timm:test_resnet", {"weights": "in22k"}, "no such file, and no tag .* Tags: imagenet, r160_in1k"),
        ("torchvision:resnt18", {}, "Did you mean resnet18"),
        ("torchvision:fcn_resnet50", {}, "unknown torchvision model"),
        ("torchvision:resnet18", {"nothing": 1}, "'nothing'"),
        ("torchvision:resnet18", {"weights": "V9"}, "Tags: imagenet, IMAGENET1K_V1"),
        ("torchvision:resnet18", {"weights": "missing.pt"}, "'missing.pt' does not exist"),
        ("no_such_package_here:make", {}, "cannot import 'no_such_package_here'"),
        (":make", {}, "not of the form package.module:name"),
        ("model_factories:absent", {}, "no callable 'absent'"),
        ("model_factories:number", {}, "no callable 'number'"),
        ("model_factories:fixed", {"width": 3}, "cannot be made .*'width'"),
        ("model_factories:broken", {}, "RuntimeError: two lines"),
        ("model_factories:wrong", {}, "returned int, not a torch.nn.Module"),
        ("model_factories:fixed", {"weights": "imagenet"}, "factories have no tags"),
        ("smp:Unett", {}, "unknown segmentation model 'Unett'. Did you mean Unet"),
        ("smp:create_model", {}, "unknown segmentation model"),
        ("smp:Unet", {"encoder_name": "resnet19"}, "unknown encoder 'resnet19'. Did you mean"),
        ("smp:Unet", {"encoder_name": "tu-resnet19"}, r"cannot be made .*resnet19"),
        ("smp:Unet", {"encoder_name": "tu-test_resnet", "nothing": 3}, "cannot be made .*'nothing'"),
        ("smp:Unet", {"encoder_name": "resnet19", "weights": "imagenet"}, "unknown encoder 'resnet19'. Did you mean"),
        ("smp:Unet", {"encoder_name": 50}, "option 'encoder_name' of model 'smp:Unet' must be the name .*, got 50"),
        ("timm:resnet18", {"pretrained": True}, "option 'pretrained' of model 'timm:resnet18' is set by weights"),
        ("smp:Unet", {"encoder_weights": None}, "option 'encoder_weights' of model 'smp:Unet' is set by weights"),
        ("smp:Unet", {"classes": 3}, "option 'classes' .* is set by num_classes"),
        ("smp:Unet", {"nothing": 3}, "unknown option of model 'smp:Unet': 'nothing'. Known: activation, aux_params, "),
        ("smp:DeepLabV3Plus", {"encoder_output_stride": 4}, "output stride 8 or 16, got 4"),
        ("smp:Unet", {"weights": "in22k"}, "no tag of model 'smp:Unet with resnet34'. Tags: imagenet, imagenet$"),
        ("smp:Unet", {"encoder_name": "resnet18", "weights": "x"}, "Tags: imagenet, imagenet, ssl, swsl$"),
        ("smp:Unet", {"encoder_name": "tu-tf_efficientnet_lite0", "weights": "x"}, "Tags: imagenet, .*in1k"),
        ("smp:Unet", {"weights": "absent.pth"}, "'absent.pth' does not exist"),
    ],
)
def test_bad_input_is_one_line(name, options, message):
    if name.startswith("smp:"):
        pytest.importorskip("segmentation_models_pytorch")
    with refused(message):
        models.create(name, **options)


def test_other_depths_and_names():
    for make, argument, message in (
        (models.describe, "resnet200", "Did you mean 'resnet20'"),
        (models.CifarResNet, 21, "got 21"),
        (models.TinyResNet, 20, "18, 34 or 50, got 20"),
        (models.CifarVGG, 12, "got 12"),
    ):
        with refused(message):
            make(argument)


def layers(model):
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def weights_of(model):
    return sum(layer.weight.numel() for layer in layers(model))


def test_cifar_resnets():
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
    model, shapes = models.create("resnet20", width=4).eval(), []
    for number in (2, 5, 8):
        model.blocks[number].register_forward_hook(lambda m, x, y: shapes.append(tuple(y.shape[1:])))
    model(torch.zeros(2, 3, 32, 32))
    assert shapes == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]


@pytest.mark.parametrize(("name", "options"), [("resnet20", {}), ("resnet18_tiny", {"width": 8, "num_classes": 200})])
def test_initialization_is_kaiming_normal(name, options):
    torch.manual_seed(0)
    model = models.create(name, **options)
    for layer in layers(model):
        if layer.weight.numel() > 2000:
            assert layer.weight.std().item() == pytest.approx((2 / layer.weight[0].numel()) ** 0.5, rel=0.1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(norm.weight.eq(1).all() and norm.bias.eq(0).all() for norm in norms)


@pytest.mark.parametrize("depth", [11, 16, 19])
def test_vgg(depth):
    model = models.create(f"vgg{depth}_bn", num_classes=7, width=0.05)
    *convolutions, last = layers(model)
    assert isinstance(last, nn.Linear) and len(convolutions) == depth - 3  # the original has three linear layers
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
    for channel, row, column in product(range(width), range(3), range(3)):
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
    with refused(r"unexpected: layer1.3.conv1.weight"):
        models.create("resnet20", width=2, weights=tmp_path / "w.th")


@pytest.mark.data
def test_published_resnet20_reaches_its_accuracy(data_folder):
    path = data_folder / "checkpoints" / "resnet20-cifar10-optionA.th"
    model = models.create("resnet20", shortcut="pad", weights=path)
    with np.load(data_folder / "cifar10.npz") as archive:
        pixels, labels = torch.from_numpy(archive["test_images"]), torch.from_numpy(archive["test_labels"]).flatten()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    model.eval()
    with torch.no_grad():
        found = [model((p.permute(0, 3, 1, 2).float() / 255 - mean) / std).argmax(1) for p in pixels.split(100)]
    assert len(labels) == 10_000
    assert (torch.cat(found) == labels).double().mean().item() == pytest.approx(0.9173, abs=0.0005)


@pytest.mark.parametrize("name", models.names())
def test_every_name_is_described_and_made(name):
    assert list(models.prefixes()) == ["timm:NAME", "torchvision:NAME", "smp:NAME", "package.module:factory"]
    assert models.describe("timm:resnet18") == models.prefixes()["timm:NAME"]
    assert "\n" not in models.describe(name)
    model = models.create(name, num_classes=5, in_channels=1, width=1 if name.startswith("resnet") else 0.02)
    for size in (28, 32):
        assert model(torch.zeros(2, 1, size, size)).shape == (2, 5)


def test_grey_images_and_one_tensor_in_training():
    model = models.create("torchvision:googlenet", num_classes=3, init_weights=False)
    assert isinstance(model(torch.randn(2, 3, 64, 64)), torch.Tensor)
    torch.manual_seed(0)
    for name in ("timm:test_resnet", "torchvision:resnet18"):
        model = models.create(name, num_classes=6, in_channels=1)
        assert model.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 6)
    usual = models.create("torchvision:resnet18", num_classes=4)
    assert model.conv1.weight.std().item() == pytest.approx(usual.conv1.weight.std().item(), rel=0.1)


def test_factory_gets_what_it_accepts(tmp_path):
    model = models.create("model_factories:Net", num_classes=5, in_channels=2, hidden=9)
    assert (model.fc.out_features, model.fc.in_features, model.hidden) == (5, 2, 9)
    assert models.create("model_factories:fixed", num_classes=5).out_features == 3
    assert models.create("model_factories:open_ended", num_classes=5).out_features == 5
    assert models.create("model_factories:open_ended", num_classes=5, in_channels=1).fc.in_features == 1
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "w.pt")
    model = models.create("model_factories:fixed", num_classes=3, weights=tmp_path / "w.pt")
    assert torch.equal(model.weight, torch.load(tmp_path / "w.pt")["weight"])


def test_torchvision_tag_keeps_the_head_and_adapts_the_first_layer(monkeypatch):
    source, tag = torchvision.models.resnet18(weights=None), torchvision.models.ResNet18_Weights
    monkeypatch.setattr(tag, "get_state_dict", lambda self, **kwargs: source.state_dict())
    with pytest.warns(PathexWarning, match=r"fc.weight, fc.bias stay .* 1000 classes, the model has 4"):
        model = models.create("torchvision:resnet18", num_classes=4, in_channels=1, weights="imagenet")
    assert torch.allclose(model.conv1.weight, source.conv1.weight.sum(1, keepdim=True), atol=1e-6)
    assert torch.equal(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_failed_download_is_one_line(monkeypatch):
    fail = MagicMock(side_effect=urllib.error.URLError("no route\nto host"))
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    with refused("'IMAGENET1K_V1' of model 'torchvision:resnet18' cannot be loaded"):
        models.create("torchvision:resnet18", weights="IMAGENET1K_V1")
    monkeypatch.setattr(timm, "create_model", fail)
    with refused("no route to host"):
        models.create("timm:test_resnet", weights="imagenet")


def test_timm_tags_use_the_loader_of_timm_in_encoders_too(monkeypatch):
    real, calls = timm.create_model, []

    def without_network(name, pretrained=False, **kwargs):
        calls.append((name, pretrained))
        return real(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", without_network)
    expected = "fc.weight, fc.bias stay at their initialization.* 1000 classes, the model has 10"
    with pytest.warns(PathexWarning, match=expected):
        models.create("timm:test_resnet", weights="r160_in1k")
    models.create("timm:test_resnet.r160_in1k", num_classes=1000, weights="imagenet")
    assert calls == [("test_resnet.r160_in1k", True)] * 2
    pytest.importorskip("segmentation_models_pytorch")
    for weights, name in (("imagenet", "test_resnet"), ("r160_in1k", "test_resnet.r160_in1k")):
        calls.clear()
        models.create("smp:Unet", 3, encoder_name="tu-test_resnet", weights=weights)
        assert (name, True) in calls
