import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file, save_model
from torch import nn

import pathex
from pathex import models
from pathex.errors import PathexWarning
from pathex.masks import read_weights
from pathex.models.weights import fit
from refusals import refused
from snapshots import unchanged


def small(classes=10, **options):
    return models.create("resnet20", num_classes=classes, width=2, **options)


def same(first, second, *, without=()):
    states = first.state_dict(), second.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0] if name not in without)


def test_file_forms(tmp_path):
    source = small()
    state = source.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    assert same(small(weights=tmp_path / "w.safetensors"), source)
    named = [{prefix + n: value for n, value in state.items()} for prefix in ("", "module.", "_orig_mod.module.")]
    for content in (state, {"model": state}, *({"epoch": 3, "state_dict": each} for each in named)):
        torch.save(content, tmp_path / "w.pth")
        assert same(small(weights=tmp_path / "w.pth"), source)


def test_another_number_of_classes_keeps_the_head_and_accounts_for_every_tensor(tmp_path):
    source = small(classes=100)
    # Old files have no counters of batches.
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("bn.num")}
    torch.save(state, tmp_path / "w.pt")
    model = small()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    expected = "125 tensors loaded; fc.weight, fc.bias stay .* for 100 classes, the model has 10"
    with pytest.warns(PathexWarning, match=expected):
        report = models.load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model.fc.weight, fresh["fc.weight"])
    assert same(source, model, without=("fc.weight", "fc.bias"))
    assert report.missing == ("bn.num_batches_tracked", "fc.weight", "fc.bias")
    assert report.unexpected == ("fc.weight", "fc.bias")
    assert sorted(report.loaded + report.missing) == sorted(model.state_dict())
    assert sorted(report.loaded + report.unexpected) == sorted(state)
    assert (report.classes, report.source) == ((100, 10), str(tmp_path / "w.pt"))


def renamed_and_reshaped(state):
    state["extra"] = state.pop("conv.weight")
    state["blocks.0.conv1.weight"] = torch.zeros(2, 2, 1, 1)


RESHAPED = r"blocks.0.conv1.weight \(2x2x1x1, model 2x2x3x3\)"
EXTRA = {f"layer\n{number}": torch.zeros(1) for number in range(9)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (renamed_and_reshaped, f"CifarResNet: missing: conv.weight; unexpected: extra; other shape: {RESHAPED}$"),
        (
            lambda state: state.update(EXTRA),
            "unexpected: layer 0, layer 1, layer 2, layer 3 and 5 more$",
        ),  # in one line
        (lambda state: state.pop("fc.bias"), r"missing: fc.bias$"),  # half of a classifier
        (lambda state: state.pop("bn.weight"), r"weights 'here' .* missing: bn.weight$"),
    ],
)
def test_everything_that_does_not_fit_is_listed_and_nothing_changes(change, expected):
    model, state = small(), small().state_dict()
    change(state)
    with unchanged(model), refused(expected):
        fit(model, state, source="here")


MOBILE = "torchvision:mobilenet_v3_small"


def with_a_wide_classifier():
    network = torchvision.models.mobilenet_v3_small(num_classes=5)
    network.classifier[0], network.classifier[3] = torch.nn.Linear(576, 1000), torch.nn.Linear(1000, 5)
    return network


@pytest.mark.parametrize(
    ("source", "name", "classes", "message"),
    [
        (lambda: models.CifarResNet(20, 4, width=3), "resnet20", 4, r"other shape: conv.weight .* and \d+ more"),
        # All tensors of a ResNet-18 are in a ResNet-34 of the same shapes.
        (torchvision.models.resnet34, "torchvision:resnet18", 1000, r"unexpected: layer1.2.conv1.weight, .* more$"),
        (with_a_wide_classifier, MOBILE, 5, r"other shape: classifier.0.weight .*, classifier.3.weight \(5x1000,"),
    ],
)
def test_other_widths_and_depths_are_not_mistaken_for_a_head(tmp_path, source, name, classes, message):
    torch.save(source().state_dict(), tmp_path / "w.pt")
    with refused(message):
        models.create(name, num_classes=classes, weights=tmp_path / "w.pt")


def test_a_tensor_that_layers_share_may_be_in_a_file_once(tmp_path):
    def tied():
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
        net[1].weight = net[0].weight
        return net

    net = tied()
    save_model(net, tmp_path / "tied.safetensors")
    assert not {"0.weight", "1.weight"} <= load_file(tmp_path / "tied.safetensors").keys()
    found = tied()
    assert models.load_weights(found, tmp_path / "tied.safetensors").missing == ()
    assert torch.equal(found[1].weight, net[0].weight)


def test_a_classifier_of_several_layers_loses_the_last_one_only(tmp_path):
    torch.save(torchvision.models.mobilenet_v3_small(num_classes=6).state_dict(), tmp_path / "w.pt")
    expected = r"classifier.3.weight, classifier.3.bias stay .* 6 classes, the model has 5"
    with pytest.warns(PathexWarning, match=expected):
        model = models.create(MOBILE, num_classes=5, weights=tmp_path / "w.pt")
    assert torch.equal(model.classifier[0].weight, torch.load(tmp_path / "w.pt")["classifier.0.weight"])


def test_weights_into_a_network_with_a_mask_stay_masked(tmp_path):
    torch.save(small().state_dict(), tmp_path / "w.pt")
    model = small()
    mask = pathex.prune(model, "magnitude", sparsity=0.5, data=torch.rand(2, 3, 8, 8), progress=False).mask
    pathex.attach(model, mask)
    models.load_weights(model, tmp_path / "w.pt")
    weight = dict(model.named_parameters())["conv.weight"]
    assert torch.equal(weight, torch.load(tmp_path / "w.pt")["conv.weight"] * mask["conv.weight"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", lambda path: None, "does not exist"),
        ("w.pth", lambda path: path.write_bytes(b""), "no readable torch file|tensors only"),
        ("w.pth", lambda path: path.write_bytes(b"PK\x03\x04 half a zip"), "no readable torch file"),
        ("w.pth", lambda path: torch.save({"model": path}, path), "pickles that could run code are not loaded"),
        ("w.pth", lambda path: torch.save([torch.zeros(1)], path), "holds no state dict"),
        ("w.pth", lambda path: torch.save({}, path), "holds no state dict"),
        ("w.pth", lambda path: torch.save({"a": torch.zeros(1), "lr": 0.1}, path), "'lr' is not a tensor"),
        ("w.safetensors", lambda path: path.write_bytes(b"\xff" * 40), "no readable safetensors file"),
    ],
)
def test_unusable_files_are_one_line(name, content, message, tmp_path):
    content(tmp_path / name)
    with refused(message):
        small(weights=tmp_path / name)


@pytest.mark.data
def test_published_checkpoints_of_other_architectures_and_classes(data_folder):
    path = data_folder / "checkpoints" / "resnet20-cifar10-optionA.th"
    state = read_weights(path)
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert not any(name.startswith("module.") for name in state)
    with refused(r"missing: blocks.3.shortcut.0.weight, .* and 6 more$"):
        models.create("resnet20", weights=path)
    with refused(r"missing: layer2.0.downsample.0.weight, .* unexpected: layer1.2.conv1.weight, "):
        models.create("torchvision:resnet18", weights=path)
    path = data_folder / "checkpoints" / "tf_efficientnet_lite0-imagenet.safetensors"
    with pytest.warns(PathexWarning, match=r"classifier.weight, classifier.bias stay .* 1000 classes"):
        models.create("timm:tf_efficientnet_lite0", num_classes=10, weights=path)

    path = data_folder / "checkpoints" / "mobilenet_v2-features-imagenet.safetensors"
    expected = r"classifier.1.weight, classifier.1.bias stay at their initialization \(not in the file"
    with pytest.warns(PathexWarning, match=f"312 tensors loaded; {expected}"):
        model = models.create("torchvision:mobilenet_v2", num_classes=10, weights=path)
    assert torch.equal(model.features[0][0].weight, read_weights(path)["features.0.0.weight"])


HEADS = {
    "fc": ("resnet20", "vgg11_bn", "resnet18_tiny", "torchvision:resnet18", "timm:resnet18"),
    "classifier": ("timm:tf_efficientnet_lite0",),
    "classifier.1": ("torchvision:mobilenet_v2", "torchvision:squeezenet1_0"),
    "classifier.0 classifier.3": (MOBILE,),
    "head": ("torchvision:swin_t", "timm:vit_tiny_patch16_224"),
    "head head_dist": ("timm:deit_tiny_distilled_patch16_224",),
    "heads.head": ("torchvision:vit_b_32",),
    "head.fc": ("timm:convnext_atto",),
    "head.proj": ("timm:resnet50_clip",),
}


@pytest.mark.parametrize(("heads", "name"), [(heads, name) for heads, names in HEADS.items() for name in names])
def test_classifiers(heads, name):
    options = {"width": 1} if ":" not in name and name.startswith("resnet") else {}
    found = models.head_parameters(models.create(name, num_classes=3, **options))
    assert found == [f"{head}.{kind}" for head in heads.split() for kind in ("weight", "bias")]


@pytest.mark.parametrize("name", ["DeepLabV3Plus", "Unet", "FPN"])
def test_segmentation_networks_have_all_but_the_encoder(name):
    pytest.importorskip("segmentation_models_pytorch")
    model = models.create(f"smp:{name}", 3, encoder_name="resnet18")
    found, names = models.head_parameters(model), [key for key, _ in model.named_parameters()]
    assert found == [key for key in names if key.startswith(("decoder.", "segmentation_head."))]
    assert all(key in found or key.startswith("encoder.") for key in names)


def test_other_networks_have_their_last_layer():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(20, 7), nn.Linear(7, 9, bias=False))
    assert models.head_parameters(model) == ["3.weight"]
    assert models.head_parameters(model, num_classes=7) == ["2.weight", "2.bias"]
    assert models.head_parameters(model, num_classes=4) == ["3.weight"]
    assert models.head_parameters(nn.Linear(2, 2)) == ["weight", "bias"]
    with refused("no head found in ReLU"):
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
