import urllib.error

import pytest
import timm
import torch
import torchvision
from torch import nn

from pathex import models
from pathex.errors import InvalidInput, PathexWarning


def test_grey_images():
    torch.manual_seed(0)
    for name in ("timm:test_resnet", "torchvision:resnet18"):
        model = models.create(name, num_classes=6, in_channels=1)
        assert model.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 6)
    usual = models.create("torchvision:resnet18", num_classes=4)
    assert model.conv1.weight.std().item() == pytest.approx(usual.conv1.weight.std().item(), rel=0.1)


def test_torchvision_googlenet_returns_one_tensor_in_training():
    model = models.create("torchvision:googlenet", num_classes=3, init_weights=False)
    assert isinstance(model(torch.randn(2, 3, 64, 64)), torch.Tensor)


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
