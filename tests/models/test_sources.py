import argparse
import warnings

import pytest
import torch
import torchvision
from torch import nn

from brute_force.cases import norms
from brute_force.clip_resnet import VisualTower
from pathex import models
from pathex.errors import PathexWarning
from refusals import refused
from snapshots import unchanged

TV, TIMM, UNET = "torchvision:resnet18", "timm:resnet18", "smp:Unet"
BOTH = [(TV, ""), (TIMM, ""), (UNET, "encoder.")]


def shake(network):
    """Numbers that no initialization gives, in every parameter and buffer."""
    with torch.no_grad():
        for value in network.state_dict().values():
            value.copy_(torch.rand(value.shape) + 0.5 if value.is_floating_point() else torch.full_like(value, 7))
    return network


def moco_network():
    """The parts of MoCo v2: two encoders whose classifier is an MLP, and the queue."""
    encoders = {name: torchvision.models.resnet18() for name in ("encoder_q", "encoder_k")}
    for encoder in encoders.values():
        encoder.fc = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 8))
    network = nn.ModuleDict(encoders)
    network.register_buffer("queue", torch.zeros(8, 32))
    network.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
    return network


def dino_network():
    """Backbone without classifier, and the projection head whose last layer is weight-normalised."""
    backbone = torchvision.models.resnet18()
    backbone.fc = nn.Identity()
    mlp = nn.Sequential(nn.Linear(512, 16), nn.GELU(), nn.Linear(16, 8))
    last = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 32, bias=False))
    return nn.ModuleDict({"backbone": backbone, "head": nn.ModuleDict({"mlp": mlp, "last_layer": last})})


def save_moco(network, path):
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9).state_dict()
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": optimizer}, path)
    return network["encoder_q"], f"mocov2:{path}"


def save_dino(network, path, *, prefix="module."):
    teacher = {prefix + name: value for name, value in network.state_dict().items()}
    student = {f"module.{name}": value for name, value in shake(dino_network()).state_dict().items()}
    extra = {"epoch": 100, "args": argparse.Namespace(arch="resnet18", lr=0.03), "dino_loss": {"center": torch.ones(3)}}
    torch.save({"student": student, "teacher": teacher, **extra}, path)
    return network["backbone"], f"dino:{path}"


def check_backbone(model, prefix, backbone, report):
    """The backbone's tensors are in the network, and nothing of the network is missing in the report."""
    own, wanted = model.state_dict(), {n: v for n, v in backbone.state_dict().items() if not n.startswith("fc.")}
    assert set(report.loaded) == {prefix + name for name in wanted}
    assert all(torch.equal(own[prefix + name], value) for name, value in wanted.items())
    assert sorted((*report.loaded, *report.missing)) == sorted(own)
    heads = {name.partition(".")[0] for name in report.missing}
    assert heads == ({"decoder", "segmentation_head"} if prefix else {"fc"})


def empty(name):
    options = {"encoder_name": "resnet18", "decoder_channels": (8, 8, 8, 8, 8)} if name == UNET else {}
    return models.create(name, num_classes=5, **options)


@pytest.mark.parametrize(("name", "prefix"), BOTH)
def test_moco(name, prefix, tmp_path):
    network, model = shake(moco_network()), empty(name)
    backbone, source = save_moco(network, tmp_path / "moco.pth.tar")
    head = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.warns(PathexWarning, match=r"120 tensors loaded;.* left out of the file: ") as caught:
        report = models.load_weights(model, source)
    (message,) = (str(each.message) for each in caught)
    assert message == report.summary()
    assert message.endswith("left out of the file: queue (1), queue_ptr (1), encoder_q (4), encoder_k (124)")
    assert ("fc.weight, fc.bias stay at their initialization (not in the file)" in message) == (not prefix)
    check_backbone(model, prefix, backbone, report)
    left = {key for key in network.state_dict() if key.startswith(("encoder_k.", "encoder_q.fc.", "queue"))}
    assert set(report.unexpected) == left
    assert all(torch.equal(model.state_dict()[key], head[key]) for key in report.missing)
    with pytest.warns(PathexWarning, match="left out"):
        created = models.create(TV, weights=source)
    assert torch.equal(created.layer4[1].bn2.running_var, backbone.layer4[1].bn2.running_var)


@pytest.mark.parametrize(("name", "prefix"), BOTH)
def test_dino(name, prefix, tmp_path):
    network = shake(dino_network())
    for form in ("module.", ""):
        backbone, source = save_dino(network, tmp_path / "dino.pth", prefix=form)
        model = empty(name)
        with pytest.warns(PathexWarning, match=r"left out of the file: teacher \(6\), student \(126\)$"):
            report = models.load_weights(model, source)
        check_backbone(model, prefix, backbone, report)
    torch.save(backbone.state_dict(), tmp_path / "dino_pretrain.pth")
    model = empty(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = models.load_weights(model, f"dino:{tmp_path / 'dino_pretrain.pth'}")
    # A decoder is expected to be random; a classifier is worth a line.
    assert [str(item.message) for item in caught] == ([] if prefix else [report.summary()])
    check_backbone(model, prefix, backbone, report)
    assert not report.unexpected


def without(part):
    return lambda state: {name: value for name, value in state.items() if part not in name}


EXTRA = {"module.encoder_q.layer5.weight": torch.zeros(3)}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (TV, without("encoder_q.layer2.0.conv1"), r"do not fit ResNet: missing: layer2.0.conv1.weight$"),
        (UNET, without("encoder_q.layer2.0.bn1.running_mean"), r"missing: encoder.layer2.0.bn1.running_mean$"),
        *((name, lambda state: state | EXTRA, r"unexpected: layer5.weight$") for name in (TV, UNET)),
        (TV, without("encoder_q."), r"is no MoCo v2 checkpoint: it holds no encoder_q.\*, but queue, queue_ptr,"),
        ("torchvision:resnet34", dict, r"missing: layer1.2.conv1.weight, .* more$"),
        ("torchvision:resnet50", dict, r"missing: .*; other shape: layer1.0.conv1.weight \(64x64x3x3, model 64x64x1x1"),
        ("resnet20", dict, r"do not fit CifarResNet: missing: "),
        ("timm:tf_efficientnet_lite0", dict, r"missing: conv_stem.weight, .* unexpected: conv1.weight, "),
    ],
)
def test_wrong_moco_files_are_refused_with_the_list(name, change, message, tmp_path):
    state = {f"module.{key}": value for key, value in moco_network().state_dict().items()}
    torch.save({"state_dict": change(state)}, tmp_path / "w.pth")
    model = empty(name)
    with unchanged(model), refused(message):
        models.load_weights(model, f"mocov2:{tmp_path / 'w.pth'}")


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(4)
    network = VisualTower().eval()
    for norm in norms(network):
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return network


@pytest.fixture(scope="module")
def clip_file(tower, tmp_path_factory):
    text = {name: torch.zeros(2) for name in ("token_embedding.weight", "logit_scale", "text_projection")}
    path = tmp_path_factory.mktemp("clip") / "RN50-state.pt"
    torch.save({f"visual.{name}": value for name, value in tower.state_dict().items()} | text, path)
    return path


def test_clip_tower_computes_the_same(tower, clip_file):
    with pytest.warns(PathexWarning, match=r"left out of the file: token_embedding \(1\), logit_scale \(1\), "):
        model = models.create("timm:resnet50_clip", num_classes=1024, weights=f"clip:{clip_file}").eval()
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(images), tower(images), rtol=1e-4, atol=1e-4)


def test_clip_with_a_classifier_without_attention_and_as_encoder(tower, clip_file):
    with pytest.warns(PathexWarning, match=r"head.proj.weight, head.proj.bias stay .* 1024 classes, the model has 5"):
        model = models.create("timm:resnet50_clip", num_classes=5, weights=f"clip:{clip_file}")
    assert torch.equal(model.head.q.weight, tower.attnpool.q_proj.weight)
    with pytest.warns(PathexWarning, match=r"head.fc.weight, head.fc.bias stay .* visual \(9\)"):
        plain = models.create("timm:resnet50_clip_gap", num_classes=5, weights=f"clip:{clip_file}").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain.forward_features(images), tower.features(images), rtol=1e-4, atol=1e-4)
        with pytest.warns(PathexWarning, match=r"left out of the file"):
            options = {"encoder_name": "tu-resnet50_clip", "decoder_channels": (8, 8, 8, 8, 8)}
            network = models.create("smp:Unet", num_classes=5, weights=f"clip:{clip_file}", **options).eval()
        torch.testing.assert_close(network.encoder(images)[-1], tower.features(images), rtol=1e-4, atol=1e-4)


def test_checkpoints_are_not_taken_for_plain_weights_nor_for_each_other(tmp_path, monkeypatch, clip_file):
    monkeypatch.chdir(tmp_path)
    save_moco(moco_network(), "moco.pth")
    save_dino(dino_network(), "dino.pth")
    torch.save({"teacher": {"encoder.weight": torch.zeros(2)}}, "w.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, its files are around
        torch.jit.script(nn.Linear(2, 2)).save("RN50.pt")
    for name, source, message in (
        (TV, "moco.pth", r"missing: conv1.weight, .* unexpected: queue, queue_ptr, encoder_q.conv1.weight, "),
        (TV, "dino.pth", r"holds several state dicts \(student, teacher\)"),
        (TV, "dino:moco.pth", r"missing: conv1.weight, "),
        (TV, "mocov2:dino.pth", r"holds several state dicts"),
        (TV, "clip:moco.pth", r"is no CLIP ResNet: it holds no visual.layer1"),
        (TV, "swav:moco.pth", r"unknown kind of weights 'swav'. Known: clip, dino, mocov2"),
        (TV, "mocov2:absent.pth", r"absent.pth' does not exist"),
        (TV, "dino:w.pth", r"is no DINO checkpoint: it holds no teacher: backbone"),
        ("timm:resnet50_clip", "clip:RN50.pt", "TorchScript archive, which holds code and is not loaded"),
        ("timm:resnet50", f"clip:{clip_file}", r"fits timm's CLIP ResNets only .*not ResNet"),
        ("timm:test_byobnet", f"clip:{clip_file}", r"do not fit ByobNet: missing: "),
    ):
        with refused(message):
            models.create(name, weights=source)
