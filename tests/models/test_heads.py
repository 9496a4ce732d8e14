import pytest
import torch
from torch import nn

from pathex import models
from pathex.errors import InvalidInput


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("resnet20", ["fc"]),
        ("vgg11_bn", ["fc"]),
        ("resnet18_tiny", ["fc"]),
        ("torchvision:resnet18", ["fc"]),
        ("torchvision:mobilenet_v2", ["classifier.1"]),
        ("torchvision:mobilenet_v3_small", ["classifier.0", "classifier.3"]),
        ("torchvision:squeezenet1_0", ["classifier.1"]),
        ("torchvision:swin_t", ["head"]),
        ("torchvision:vit_b_32", ["heads.head"]),
        ("timm:resnet18", ["fc"]),
        ("timm:tf_efficientnet_lite0", ["classifier"]),
        ("timm:convnext_atto", ["head.fc"]),
        ("timm:vit_tiny_patch16_224", ["head"]),
        ("timm:deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
        ("timm:resnet50_clip", ["head.proj"]),
    ],
)
def test_classifiers(name, heads):
    options = {"width": 1} if ":" not in name and name.startswith("resnet") else {}
    model = models.create(name, num_classes=3, **options)
    assert models.head_parameters(model) == [f"{head}.{kind}" for head in heads for kind in ("weight", "bias")]


@pytest.mark.parametrize("name", ["DeepLabV3Plus", "Unet", "FPN"])
def test_segmentation_networks_have_all_but_the_encoder(name):
    pytest.importorskip("segmentation_models_pytorch")
    model = models.create(f"smp:{name}", 3, encoder_name="resnet18")
    names = [key for key, _ in model.named_parameters()]
    assert models.head_parameters(model) == [key for key in names if not key.startswith("encoder.")]
    assert {key.partition(".")[0] for key in models.head_parameters(model)} == {"decoder", "segmentation_head"}


def test_other_networks_have_their_last_layer():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(20, 7), nn.Linear(7, 9, bias=False))
    assert models.head_parameters(model) == ["3.weight"]
    assert models.head_parameters(model, num_classes=7) == ["2.weight", "2.bias"]
    assert models.head_parameters(model, num_classes=4) == ["3.weight"]
    assert models.head_parameters(nn.Linear(2, 2)) == ["weight", "bias"]
    with pytest.raises(InvalidInput, match="no head found in ReLU"):
        models.head_parameters(nn.ReLU())
    assert models.head_parameters(torch.compile(models.create("resnet20", width=2))) == ["fc.weight", "fc.bias"]


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize(
    ("name", "weights", "options", "expected"),
    [
        ("timm:tf_efficientnet_lite0", None, {}, None),
        ("timm:tf_efficientnet_lite0", "imagenet", {}, HALF),
        ("timm:tf_efficientnet_lite0", "lite0.safetensors", {}, HALF),
        ("timm:resnet50", "a1_in1k", {}, IMAGENET),
        ("timm:resnet50.a1_in1k", "imagenet", {}, IMAGENET),
        ("timm:resnet50_clip", "openai", {}, CLIP),
        ("timm:resnet50_clip", "clip:RN50.pt", {}, CLIP),
        ("timm:vit_base_patch16_224", "augreg_in21k", {}, HALF),
        ("timm:vit_base_patch16_224", "dino", {}, IMAGENET),
        ("timm:no_such_network", "imagenet", {}, None),
        ("torchvision:resnet50", "IMAGENET1K_V2", {}, IMAGENET),
        ("torchvision:resnet50", "imagenet", {}, IMAGENET),
        ("torchvision:mobilenet_v2", "features.safetensors", {}, IMAGENET),
        ("torchvision:resnet50", "mocov2:moco.pth.tar", {}, IMAGENET),
        ("torchvision:resnet50", "dino:dino.pth", {}, IMAGENET),
        ("torchvision:resnet50", "V9", {}, None),
        ("torchvision:nothing", "imagenet", {}, None),
        ("smp:DeepLabV3Plus", "imagenet", {"encoder_name": "resnet50"}, IMAGENET),
        ("smp:DeepLabV3Plus", "imagenet", {}, IMAGENET),
        ("smp:DeepLabV3Plus", "lite0.pt", {"encoder_name": "tu-tf_efficientnet_lite0"}, HALF),
        ("smp:DeepLabV3Plus", "dino:d.pt", {"encoder_name": "resnet50"}, IMAGENET),
        ("smp:DeepLabV3Plus", "x.pt", {"encoder_name": "xception"}, None),
        ("smp:DeepLabV3Plus", "imagenet", {"encoder_name": "nothing"}, None),
        ("smp:Nothing", "imagenet", {}, None),
        ("resnet20", "own.pt", {}, None),
        ("package.module:factory", "own.pt", {}, None),
    ],
)
def test_expected_normalisation(name, weights, options, expected):
    if name.startswith("smp:"):
        pytest.importorskip("segmentation_models_pytorch")
    assert models.expected_normalisation(name, weights, **options) == expected


def test_statistics_that_only_the_hub_knows_fail_in_one_line(monkeypatch):
    smp = pytest.importorskip("segmentation_models_pytorch")

    def fail(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr(smp.encoders, "hf_hub_download", fail)
    with pytest.raises(
        InvalidInput, match=r"encoder 'xception' expects cannot be looked up \(OSError: no route to host"
    ):
        models.expected_normalisation("smp:Unet", "imagenet", encoder_name="xception")
