import json
import sys
import warnings
from unittest.mock import MagicMock

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

import pathex
from pathex import models
from pathex.errors import PathexWarning
from refusals import refused
from snapshots import unchanged

smp = pytest.importorskip("segmentation_models_pytorch")

ENCODERS = ("resnet50", "mobilenet_v2", "tu-tf_efficientnet_lite0")


def deeplab(encoder="mobilenet_v2", classes=4, **options):
    return models.create("smp:DeepLabV3Plus", classes, encoder_name=encoder, decoder_channels=8, **options)


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoders_at_both_output_strides(encoder, stride):
    model = deeplab(encoder, encoder_output_stride=stride).eval()
    images = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        assert model.encoder(images)[-1].shape[-1] == 64 // stride
        assert model(images).shape == (1, 4, 64, 64)


@pytest.mark.parametrize("stride", [16, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("encoder", ["mobilenet_v2", *(pytest.param(e, marks=pytest.mark.slow) for e in ENCODERS[::2])])
def test_px_prunes_every_encoder(encoder, stride):
    model, data = deeplab(encoder, encoder_output_stride=stride), torch.rand(1, 3, 32, 32)
    with unchanged(model):
        result = pathex.prune(model, "px", sparsity=0.8, data=data, rounds=2, progress=False)
    assert result.mask.kept == round(0.2 * result.mask.total) and not result.report.dead_layers


def test_nothing_is_downloaded_without_weights(monkeypatch):
    monkeypatch.setattr(smp.encoders, "hf_hub_download", MagicMock(side_effect=OSError("no route\nto host")))
    assert models.create("smp:Unet", 3, encoder_name="resnet18").encoder.conv1.weight.shape[1] == 3
    grey = models.create("smp:FPN", num_classes=3, in_channels=1, encoder_name="resnet18").eval()
    assert grey(torch.zeros(1, 1, 32, 32)).shape == (1, 3, 32, 32)
    with refused("weights 'imagenet' of model 'smp:Unet with resnet18' cannot be loaded"):
        models.create("smp:Unet", encoder_name="resnet18", weights="imagenet")
    with refused(r"encoder 'xception' expects cannot be looked up \(OSError: no route to host"):
        models.expected_normalisation("smp:Unet", "imagenet", encoder_name="xception")
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with refused(r"'smp:Unet' needs segmentation-models-pytorch, .* pip install 'pathex\[seg\]'"):
        models.create("smp:Unet")


def test_tag_goes_through_the_package(tmp_path, monkeypatch):
    source = torchvision.models.resnet18()
    save_file({n: v for n, v in source.state_dict().items() if not n.startswith("fc.")}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({}))
    asked = []

    def download(repository, filename, revision):
        asked.append((repository, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr(smp.encoders, "hf_hub_download", download)
    model = models.create("smp:Unet", 3, encoder_name="resnet18", weights="ssl")
    assert ("smp-hub/resnet18.ssl", "model.safetensors") in asked
    assert torch.equal(model.encoder.layer4[0].conv1.weight, source.layer4[0].conv1.weight)


def test_whole_network_round_trip_and_other_classes(tmp_path):
    source = deeplab()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    again = deeplab(weights=tmp_path / "w.pt")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in source.state_dict().items())
    expected = "segmentation_head.0.weight, segmentation_head.0.bias stay .* for 4 classes, the model has 6"
    with pytest.warns(PathexWarning, match=expected):
        other = deeplab(classes=6, weights=tmp_path / "w.pt")
    assert torch.equal(other.decoder.aspp[0].project[0].weight, source.decoder.aspp[0].project[0].weight)
    state = source.state_dict()
    del state["decoder.block1.1.running_var"]
    torch.save(state, tmp_path / "w.pt")
    with refused(r"missing: decoder.block1.1.running_var$"):
        deeplab(weights=tmp_path / "w.pt")


def test_classifier_files_fill_the_encoder_silently(tmp_path):
    source = torchvision.models.resnet18()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    model = models.create("smp:Unet", 3, encoder_name="resnet18")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = models.load_weights(model, tmp_path / "w.pt")
    assert report.unexpected == ("fc.weight", "fc.bias")
    assert all(torch.equal(v, source.state_dict()[n]) for n, v in model.encoder.state_dict().items())
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "w.pt")
    # All tensors of a ResNet-18 are in a ResNet-34 of the same shapes.
    with refused(r"unexpected: layer1.2.conv1.weight, .* more$"):
        models.create("smp:Unet", 3, encoder_name="resnet18", weights=tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["convnext_atto", "test_resnet", "regnetx_002"])
def test_timm_files_fill_timm_encoders(name, tmp_path):
    source = timm.create_model(name).eval()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    random = torch.random.get_rng_state()
    model = models.create("smp:Unet", 3, encoder_name=f"tu-{name}").eval()
    created = torch.random.get_rng_state()
    assert not torch.equal(created, random)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # norms behind the features are named
        report = models.load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(torch.random.get_rng_state(), created)
    assert sorted((*report.loaded, *report.missing)) == sorted(model.state_dict())
    assert len(report.loaded) + len(report.unexpected) == len(source.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.forward_intermediates(images, intermediates_only=True)[-1]
        torch.testing.assert_close(model.encoder(images)[-1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.data
def test_published_weights_in_an_encoder(data_folder):
    folder, images = data_folder / "checkpoints", torch.rand(1, 3, 64, 64)
    path = folder / "mobilenet_v2-features-imagenet.safetensors"
    model = models.create("smp:Unet", 3, encoder_name="mobilenet_v2", weights=path).eval()
    source = torchvision.models.mobilenet_v2().eval()
    source.load_state_dict(load_file(path), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(images)[-1], source.features(images))
    path = folder / "tf_efficientnet_lite0-imagenet.safetensors"
    with pytest.warns(PathexWarning, match=r"left out of the file: bn2 \(5\), classifier \(2\), conv_head \(1\)$"):
        model = models.create("smp:Unet", 3, encoder_name="tu-tf_efficientnet_lite0", weights=path).eval()
    source = timm.create_model("tf_efficientnet_lite0").eval()
    source.load_state_dict(load_file(path))
    with torch.no_grad():
        expected = source.forward_intermediates(images, intermediates_only=True)[-1]
        torch.testing.assert_close(model.encoder(images)[-1], expected)
