"""The catalogue holds what it says: every constructor of torchvision, all families of timm, sizes that fit."""

import pytest
import torch
from torchvision import models

from benchmarks.zoo.catalogue import LEFT_OUT, SEGMENTATION, build, catalogue, describe, first_output

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


@pytest.mark.parametrize("model", ["timm:test_resnet", "timm:test_vit3", f"{SEGMENTATION}lraspp_mobilenet_v3_large"])
def test_a_row_is_what_is_measured(model):
    row = BY_MODEL[model]
    found = describe(model, row.family, row.size)
    assert {**found.row(), "methods": row.methods} == row.row()
    network, x, y = build(row)
    assert sum(parameter.numel() for parameter in network.parameters()) == row.parameters
    assert y.shape == x.shape[:1] or y.shape == (4, row.size, row.size)
    assert network.training
    with pytest.raises(ValueError, match="accepts no image of 384"):
        describe("timm:twelve", "none", 384)


def test_a_network_is_the_same_for_the_same_seed():
    row = BY_MODEL["timm:test_efficientnet"]
    outputs = []
    for seed in (0, 0, 1):
        network, x, _ = build(row, seed)
        outputs.append(first_output(network.eval()(x)))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
