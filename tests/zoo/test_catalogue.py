"""The catalogue holds what it says: every constructor of torchvision, all families of timm, sizes that fit."""

import pytest
import torch
from torchvision import models

import pathex
from benchmarks.zoo.catalogue import LEFT_OUT, SEGMENTATION, build, catalogue, describe, first_output
from benchmarks.zoo.table import EXTRA, SIX, plan
from benchmarks.zoo.trial import trial

LRASPP = f"{SEGMENTATION}lraspp_mobilenet_v3_large"
FAMILIES = {
    *("resnet", "resnext", "res2net", "regnet", "densenet", "vgg", "inception", "mobilenet", "mnasnet"),
    *("efficientnet", "ghostnet", "shufflenet", "rexnet", "hrnet", "dla", "darknet", "nfnet", "convnext"),
    *("convmixer", "mixer", "resmlp", "vit", "deit", "beit", "cait", "swin", "twins", "pit", "levit", "xcit"),
    *("coat", "maxvit", "poolformer", "mobilevit", "efficientformer", "fastvit", "repvgg", "tiny_vit", "eva"),
    "metaformer",
}
BY_MODEL = {architecture.model: architecture for architecture in catalogue()}


def test_every_constructor_of_torchvision_is_in_it_or_left_out_with_a_reason():
    constructors = {f"torchvision:{name}" for name in models.list_models(module=models)}
    constructors |= {f"{SEGMENTATION}{name}" for name in models.list_models(module=models.segmentation)}
    assert constructors - set(BY_MODEL) == set(LEFT_OUT) & constructors
    assert not set(BY_MODEL) & set(LEFT_OUT)
    assert all(LEFT_OUT.values())


def test_every_family_is_in_it_under_names_of_its_own_and_thirty_get_every_method():
    assert {architecture.family for architecture in BY_MODEL.values()} >= FAMILIES
    assert sum(model.startswith("timm:") for model in BY_MODEL) >= 120
    for generation in ("mobilenetv1", "mobilenetv2", "mobilenetv3", "mobilenetv4"):
        assert any(model.startswith(f"timm:{generation}") for model in BY_MODEL), generation
    assert len(BY_MODEL) == len(catalogue())
    kinds = [architecture.methods for architecture in BY_MODEL.values()]
    assert set(kinds) == {"all", "six"} and kinds.count("all") == 30


@pytest.mark.parametrize("model", ["timm:test_resnet", "timm:test_vit3", LRASPP])
def test_a_row_is_what_is_measured(model):
    row = BY_MODEL[model]
    found = describe(model, row.family, row.size)
    assert {**found.row(), "methods": row.methods} == row.row()
    network, x, y = build(row)
    assert sum(parameter.numel() for parameter in network.parameters()) == row.parameters
    assert y.shape == x.shape[:1] or y.shape == (4, row.size, row.size)
    assert network.training
    outputs = []
    for seed in (0, 0, 1):
        network, x, _ = build(row, seed)
        outputs.append(first_output(network.eval()(x)))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    with pytest.raises(ValueError, match="accepts no image of 384"):
        describe("timm:twelve", "none", 384)


SAMPLE = (
    "torchvision:squeezenet1_1",
    "timm:test_efficientnet",
    "timm:test_nfnet",
    "timm:test_vit",
    "timm:starnet_s050",
)
WORK_ANYWHERE = frozenset({"random", "magnitude", "snip", "grasp", "ntk-diagonal"})


def _assert_works(architecture, name, rounds, *, may_refuse):
    network, x, y = build(architecture)
    found = trial(network, x, y, name, rounds=rounds)
    assert found.outcome in ({"ok", "refused"} if may_refuse else {"ok"}), f"{name}: {found.message}"


SOME = [(model, name) for model in SAMPLE for name in (*SIX, *EXTRA)]


@pytest.mark.parametrize(("model", "name"), SOME + [(LRASPP, name) for name in ("random", "snip", "px")])
def test_a_sample(model, name):
    rounds = 1 if name in EXTRA or model == LRASPP else 2
    _assert_works(BY_MODEL[model], name, rounds, may_refuse=name == "synflow")


@pytest.mark.slow
@pytest.mark.parametrize("model", BY_MODEL)
def test_all(model):
    for name, rounds in plan(BY_MODEL[model], pathex.methods()).items():
        _assert_works(BY_MODEL[model], name, rounds, may_refuse=name not in WORK_ANYWHERE)
