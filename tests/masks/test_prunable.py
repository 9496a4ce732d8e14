import warnings

import pytest
import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer

import pathex
from brute_force.cases import Wired
from pathex.masks import prunable_weights
from refusals import refused

BLOCK = nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU(), nn.ConvTranspose2d(2, 2, 1))
NET = {"stem": nn.Conv2d(1, 2, 3), "norm": nn.BatchNorm2d(2), "block": BLOCK, "embed": nn.Embedding(5, 2)}
NET = nn.ModuleDict(NET | {"head": nn.Linear(2, 3)})
APART = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
OWN = nn.Sequential(
    nn.Embedding(4, 3), Wired(None, weight=nn.Parameter(torch.ones(3))), nn.LayerNorm(3), nn.Linear(3, 2)
)
TABLES = nn.ModuleList([nn.Embedding(4, 3), nn.EmbeddingBag(4, 3), nn.Bilinear(3, 3, 2), nn.Linear(2, 2)])
SHARED = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
SHARED[2].weight = SHARED[0].weight
OF_BLOCK = ("block.*", ["block.?"], ["block.*.weight"], ["block.0", "block.2"])


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (NET, {}, "stem.weight block.0.weight block.2.weight head.weight"),
        *((NET, {"ignore": globs}, "stem.weight head.weight") for globs in OF_BLOCK),
        *(
            (NET, {"ignore": each}, "stem.weight head.weight")
            for each in ([nn.Conv1d, nn.ConvTranspose2d], [NET.block])
        ),
        *((NET, {"ignore": one}, "stem.weight block.0.weight block.2.weight") for one in (NET.head, nn.Linear)),
        (nn.Linear(2, 2), {}, "weight"),
        (OWN, {"prunable": [nn.Embedding, Wired]}, "0.weight 1.weight 3.weight"),
        (OWN, {"prunable": ["2"], "ignore": ["3"]}, "2.weight"),
        (TABLES, {}, "3.weight"),
        (TABLES, {"prunable": [nn.Embedding, nn.EmbeddingBag, nn.Bilinear]}, "0.weight 1.weight 2.weight 3.weight"),
        (SHARED, {}, "0.weight 3.weight"),
        (SHARED, {"ignore": ["2"]}, "3.weight"),
        (APART, {}, "q_proj_weight k_proj_weight v_proj_weight out_proj.weight"),
        (APART, {"ignore": ["k_proj_weight"]}, "q_proj_weight v_proj_weight out_proj.weight"),
        (APART, {"ignore": [nn.MultiheadAttention]}, "out_proj.weight"),
    ],
)
def test_layers_in_order_without_those_that_are_ignored_and_with_those_that_are_added(model, options, expected):
    found = prunable_weights(model, **options)
    assert list(found) == expected.split()
    assert all(weight is model.get_parameter(name) for name, weight in found.items())


def changed(change, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(change(nn.Linear(2, 2), *arguments))


SPECTRAL = changed(nn.utils.parametrizations.spectral_norm)
PRUNED = changed(nn.utils.prune.random_unstructured, "weight", 0.5)
SCALED = Wired(None, fc=nn.Linear(2, 2), scale=nn.Parameter(torch.tensor(1.0)))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Sequential(nn.ReLU()), {}, "Sequential has nothing to prune"),
        (nn.Linear(2, 2), {"ignore": ["weight"]}, "nothing to prune"),
        (NET, {"ignore": ["*"]}, "ModuleDict has nothing to prune"),
        (NET, {"ignore": ["fc"]}, "ignore: 'fc' matches no module of ModuleDict"),
        (NET, {"prunable": [nn.LSTM]}, "prunable: LSTM matches no module of ModuleDict"),
        (NET, {"ignore": [nn.Linear(1, 1)]}, "ignore: Linear matches no module"),
        (NET, {"ignore": [3]}, "a selector is a glob, a module class or a module, not int"),
        (SPECTRAL, {}, r"weight of '0' is a parametrization.*prunable=\['0.parametrizations.weight.original'\]"),
        (changed(nn.utils.weight_norm), {}, r"weight of '0' is a parametrization.*prunable=\['0.weight_v'\]"),
        (PRUNED, {}, "'0.weight' is pruned by torch.nn.utils.prune: take its mask with"),
        (nn.Sequential(nn.LSTM(2, 2)), {"prunable": [nn.LSTM]}, "LSTM has no tensor named weight.*'0.weight_ih_l0'"),
        (NET, {"prunable": ["*.pos"]}, r"prunable: '\*.pos' matches no module of ModuleDict, and no parameter"),
        (NET, {"ignore": ["stem", "*.gone"]}, r"ignore: '\*.gone' matches no module of ModuleDict, and no parameter"),
        (SCALED, {"prunable": ["*scale"]}, "'scale' is a single number"),
        (nn.Sequential(nn.LazyLinear(2)), {}, "weight of '0' has no shape yet"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_cannot_be_pruned_is_named(model, options, message):
    with refused(message):
        prunable_weights(model, **options)


@pytest.mark.filterwarnings("ignore:dead channels and disconnected weights are not counted")
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_the_tensor_behind_a_parametrization_can_be_named(norm):
    torch.manual_seed(0)
    model = nn.Sequential(getattr(nn.utils.parametrizations, norm)(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 2))
    behind = "0.parametrizations.weight.original" + ("1" if norm == "weight_norm" else "")
    assert list(prunable_weights(model, prunable=[behind])) == [behind, "2.weight"]
    assert list(prunable_weights(model, ignore=["0"])) == ["2.weight"]
    mask = pathex.prune(model, "magnitude", sparsity=0.4, data=torch.randn(2, 6), prunable=[behind]).mask
    pathex.attach(model, mask)
    # Both norms only scale: what is removed behind them is zero in the weight that acts.
    assert torch.equal(model[0].weight == 0, ~mask[behind]) and model[0].weight.isfinite().all()
    if norm == "weight_norm":  # why it is not pruned unasked
        with torch.no_grad():
            model.get_parameter(behind)[0] = 0
        assert model[0].weight[0].isnan().all()


def vision_transformer():
    torch.manual_seed(0)
    options = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 5}
    model = VisionTransformer(image_size=32, patch_size=8, **options)
    nn.init.normal_(model.heads.head.weight)  # it starts at zero
    return model


def test_a_vision_transformer_is_pruned_trained_and_saved(tmp_path):
    model, x = vision_transformer(), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    name = "encoder.layers.encoder_layer_1.self_attention.in_proj_weight"
    like = pathex.masks.formats.complete(pathex.Mask({name: torch.arange(768).view(48, 16) < 192}), model)
    for allocation, share in (("erk", 64 / 440), (like, 192 / like.kept)):
        mask = pathex.prune(model, "magnitude", sparsity=0.8, data=x, rounds=3, allocation=allocation).mask
        assert mask.kept == round(0.2 * mask.total) == round(0.2 * 7248)
        assert abs(mask.counts()[name].kept - 0.2 * 7248 * share) <= 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    pathex.attach(model, mask, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(model.get_parameter(n) != 0, entry) for n, entry in mask.items())
    assert pathex.masks.formats.from_zeros(model) == mask
    for form in pathex.masks.files.FORMATS:
        pathex.masks.files.write_mask(mask, tmp_path / "m.safetensors", form, model)
        assert pathex.masks.files.read_mask(tmp_path / "m.safetensors", vision_transformer()) == mask


def test_attention_projections_are_prunable_and_any_parameter_by_its_full_name():
    model = vision_transformer()
    of_layer = ("self_attention.in_proj_weight", "self_attention.out_proj.weight", "mlp.0.weight", "mlp.3.weight")
    layers = [f"encoder.layers.encoder_layer_{i}.{own}" for i in range(2) for own in of_layer]
    assert list(prunable_weights(model)) == ["conv_proj.weight", *layers, "heads.head.weight"]
    usual = set(prunable_weights(model))
    found = prunable_weights(model, prunable=["*.pos_embedding", "class_token"])
    assert set(found) - usual == {"encoder.pos_embedding", "class_token"}
    assert found["class_token"] is model.class_token
    some = prunable_weights(model, prunable=["*_embedding", "*.ln_?.weight"], ignore=["*layer_0*", "*.pos_*"])
    assert set(some) - usual == {f"encoder.layers.encoder_layer_1.ln_{i}.weight" for i in (1, 2)}
    assert list(found) == [name for name, _ in model.named_parameters() if name in found]
    # A glob that fits modules means their weights, not every parameter whose name it fits too.
    assert set(prunable_weights(model, prunable=["*ln_1"])) - usual == {
        f"encoder.layers.encoder_layer_{i}.ln_1.weight" for i in range(2)
    }
    options = {"prunable": ["*.pos_embedding"], "allocation": "layer"}
    mask = pathex.prune(model, "magnitude", sparsity=0.5, data=torch.randn(2, 3, 32, 32), **options).mask  # type: ignore[arg-type]
    assert mask.counts()["encoder.pos_embedding"] == (136, 272)


@pytest.mark.parametrize("name", ["resnetv2_50x1_bit", "nf_resnet26", "nf_regnet_b0"])
def test_weight_standardised_convolutions_of_timm_are_convolutions(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=4)
    standardised = [n for n, m in model.named_modules() if type(m).__name__ in {"StdConv2d", "ScaledStdConv2d"}]
    assert standardised and {f"{each}.weight" for each in standardised} <= set(prunable_weights(model))
