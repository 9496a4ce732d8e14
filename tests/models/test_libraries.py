"""Networks of timm, torchvision and any factory."""

import sys
import urllib.error

import pytest
import timm
import torch
import torchvision
from torch import nn

from pathex import models
from pathex.errors import InvalidInput, PathexWarning

FACTORIES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, in_channels=3, hidden=4):
        super().__init__()
        self.fc = nn.Linear(in_channels, num_classes)
        self.hidden = hidden

def fixed():
    return nn.Linear(2, 3)

def open_ended(**kwargs):
    return nn.Linear(2, kwargs["num_classes"]) if set(kwargs) == {"num_classes"} else Net(**kwargs)

def broken(num_classes):
    raise RuntimeError("two\\nlines")

def wrong(num_classes):
    return num_classes

number = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "pathex_test_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    yield "pathex_test_factories"
    sys.modules.pop("pathex_test_factories", None)


def test_grey_images():
    """torchvision keeps the scale of the first layer."""
    torch.manual_seed(0)
    for name in ("timm:test_resnet", "torchvision:resnet18"):
        model = models.create(name, num_classes=6, in_channels=1)
        assert model.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 6)
    usual = models.create("torchvision:resnet18", num_classes=4)
    assert model.conv1.weight.std().item() == pytest.approx(usual.conv1.weight.std().item(), rel=0.1)


def test_torchvision_googlenet_returns_one_tensor_in_training():
    model = models.create("torchvision:googlenet", num_classes=3, init_weights=False)
    assert isinstance(model(torch.randn(2, 3, 64, 64)), torch.Tensor)


def test_factory_gets_what_it_accepts(factories, tmp_path):
    model = models.create(f"{factories}:Net", num_classes=5, in_channels=2, hidden=9)
    assert (model.fc.out_features, model.fc.in_features, model.hidden) == (5, 2, 9)
    assert models.create(f"{factories}:fixed", num_classes=5).out_features == 3
    assert models.create(f"{factories}:open_ended", num_classes=5).out_features == 5
    assert models.create(f"{factories}:open_ended", num_classes=5, in_channels=1).fc.in_features == 1
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "w.pt")
    model = models.create(f"{factories}:fixed", num_classes=3, weights=tmp_path / "w.pt")
    assert torch.equal(model.weight, torch.load(tmp_path / "w.pt")["weight"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
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
        ("pathex_test_factories:absent", {}, "no callable 'absent'"),
        ("pathex_test_factories:number", {}, "no callable 'number'"),
        ("pathex_test_factories:fixed", {"width": 3}, "cannot be made .*'width'"),
        ("pathex_test_factories:broken", {}, "RuntimeError: two lines"),
        ("pathex_test_factories:wrong", {}, "returned int, not a torch.nn.Module"),
        ("pathex_test_factories:fixed", {"weights": "imagenet"}, "factories have no tags"),
    ],
)
def test_bad_input_is_one_line(name, options, message, factories):
    with pytest.raises(InvalidInput, match=message) as caught:
        models.create(name, **options)
    assert "\n" not in str(caught.value)


def test_torchvision_tag_keeps_the_head_and_adapts_the_first_layer(monkeypatch):
    source = torchvision.models.resnet18(weights=None)
    tag = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(tag, "get_state_dict", lambda self, **kwargs: source.state_dict())
    with pytest.warns(PathexWarning, match=r"fc.weight, fc.bias stay .* 1000 classes, the model has 4"):
        model = models.create("torchvision:resnet18", num_classes=4, in_channels=1, weights="imagenet")
    assert torch.allclose(model.conv1.weight, source.conv1.weight.sum(1, keepdim=True), atol=1e-6)
    assert torch.equal(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_failed_download_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("no route\nto host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(InvalidInput, match="'IMAGENET1K_V1' of model 'torchvision:resnet18' cannot be loaded"):
        models.create("torchvision:resnet18", weights="IMAGENET1K_V1")
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InvalidInput, match="no route to host"):
        models.create("timm:test_resnet", weights="imagenet")


def test_timm_tag_uses_the_loader_of_timm(monkeypatch):
    real, calls = timm.create_model, []

    def without_network(name, pretrained, **kwargs):
        calls.append((name, pretrained))
        return real(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", without_network)
    with pytest.warns(
        PathexWarning, match="fc.weight, fc.bias stay at their initialization.* 1000 classes, the model has 10"
    ):
        models.create("timm:test_resnet", weights="r160_in1k")
    models.create("timm:test_resnet.r160_in1k", num_classes=1000, weights="imagenet")
    assert calls == [("test_resnet.r160_in1k", True)] * 2


def test_forms_of_name_are_listed():
    assert list(models.prefixes()) == ["timm:NAME", "torchvision:NAME", "smp:NAME", "package.module:factory"]
    assert models.describe("timm:resnet18") == models.prefixes()["timm:NAME"]
