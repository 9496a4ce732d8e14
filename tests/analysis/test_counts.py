"""Parameters and multiply-adds, and dense networks with as many."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathex
from brute_force.cases import Wired
from brute_force.work import multiply_adds
from pathex.analysis import count, matching_width
from pathex.errors import InvalidInput, MaskMismatch, UnknownName
from pathex.masks import prunable_weights
from refusals import refused
from snapshots import unchanged


def random_mask(model, seed):
    source = torch.Generator().manual_seed(seed)
    return pathex.Mask({n: torch.rand(p.shape, generator=source) < 0.4 for n, p in prunable_weights(model).items()})


def strided():
    first, last = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(9, 9, 3, groups=9, padding=1)
    middle = nn.Conv2d(6, 9, (1, 3), groups=3, dilation=(1, 2), padding=(0, 2), bias=False)
    layers = (first, nn.BatchNorm2d(6), nn.ReLU(), middle, nn.MaxPool2d(2), last, nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(9 * 2 * 3, 5))


def transposed():
    up = nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2, output_padding=1)
    of_tokens = (nn.Flatten(2), nn.Linear(8 * 8, 7, bias=False), nn.GELU(), nn.Linear(7, 3))
    return nn.Sequential(nn.Conv2d(4, 8, 3, stride=3), up, *of_tokens)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("make", "shape"), [(strided, (4, 9, 11)), (transposed, (4, 11, 9))])
def test_against_products_counted_one_by_one(make, shape, seed):
    model, image = make(), torch.randn(shape)
    mask, counts = random_mask(model, seed), count(model, shape)
    everything = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    assert counts.multiply_adds() == multiply_adds(model, image, everything)
    assert counts.multiply_adds(mask) == multiply_adds(model, image, dict(mask))
    assert counts.others == 0
    pathex.make_permanent(model, mask)
    unpruned = sum(p.numel() for n, p in model.named_parameters() if n not in mask)
    assert counts.parameters(mask) == unpruned + sum(int(model.get_parameter(n).count_nonzero()) for n in mask)
    assert counts.parameters() == sum(p.numel() for p in model.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "billions", "parameters"),
    [
        ("resnet50", 4.089, 25557032),
        ("mobilenet_v3_large", 0.217, 5483032),
        pytest.param("vit_b_16", 17.564, 86567656, marks=pytest.mark.slow),
        pytest.param("swin_t", 4.491, 28288354, marks=pytest.mark.slow),
        pytest.param("densenet121", 2.834, 7978856, marks=pytest.mark.slow),
    ],
)
def test_torchvision_publishes_the_same_numbers(name, billions, parameters):
    with torch.device("meta"):
        model = pathex.models.create(f"torchvision:{name}", num_classes=1000)
    counts = count(model, (3, 224, 224))
    assert round(counts.multiply_adds() / 1e9, 3) == billions and counts.parameters() == parameters
    used = set(prunable_weights(model))
    assert all(counts.products[weight] > 0 for weight in used)
    assert counts.others + sum(counts.products[weight] for weight in used) == counts.multiply_adds()


LARGE = ("timm:mobilenetv3_small_050", "timm:vit_tiny_patch16_224", "timm:nf_regnet_b0", "smp:DeepLabV3Plus")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["vgg16_bn", "timm:test_efficientnet", "timm:test_vit", *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)],
)
def test_density_scales_what_the_mask_names(name):
    options = {"encoder_name": "mobilenet_v2"} if name.startswith("smp") else {}
    model = pathex.models.create(name, num_classes=4, **options)
    size = 224 if "vit_tiny" in name else 160 if "vit" in name else 64
    counts = count(model, (3, size, size))
    weights = prunable_weights(model)
    assert all(counts.products[n] > 0 and counts.products[n] % p.numel() == 0 for n, p in weights.items())
    empty = pathex.Mask({weight: torch.zeros(p.shape, dtype=torch.bool) for weight, p in weights.items()})
    assert counts.multiply_adds(empty) == counts.others
    assert counts.parameters(empty) == sum(p.numel() for n, p in model.named_parameters() if n not in weights)
    assert (counts.others > 0) == ("vit" in name)
    mask = random_mask(model, 0)
    expected = sum(counts.products[n] // weights[n].numel() * kept for n, (kept, _) in mask.counts().items())
    assert counts.multiply_adds(mask) == expected + counts.others


def _attends(net, x):
    """Attention in torch's own module, in training code's three projections, and over learned queries."""
    tokens = x.flatten(2).transpose(1, 2)
    tokens = net.whole(tokens, tokens, tokens)[0]
    return F.scaled_dot_product_attention(net.query(net.latent), net.key(tokens), tokens)


def test_products_of_activations_stay_dense():
    layers = {"whole": nn.MultiheadAttention(8, 2, batch_first=True), "query": nn.Linear(8, 8), "key": nn.Linear(8, 8)}
    model = Wired(_attends, latent=nn.Parameter(torch.randn(1, 3, 8)), **layers)
    counts = count(model, (8, 2, 3))
    projections = {"whole.in_proj_weight": 6 * 192, "whole.out_proj.weight": 6 * 64}
    projections |= {"query.weight": 3 * 64, "key.weight": 6 * 64}
    assert {name: number for name, number in counts.products.items() if number} == projections
    assert counts.others == 2 * 6 * 6 * 8 + 2 * 3 * 6 * 8
    mask = random_mask(model, 0)
    kept = sum(projections[name] // total * kept for name, (kept, total) in mask.counts().items())
    assert counts.multiply_adds(mask) == kept + counts.others


def _shares(net, x):
    weight = net.gain * (net.conv.weight - net.conv.weight.mean((1, 2, 3), keepdim=True))
    return net.conv(net.conv(x)) + F.conv2d(x[..., ::2, ::2], weight, padding=1).repeat(1, 1, 2, 2)


def test_weights_that_are_used_often_or_transformed():
    conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    model = Wired(_shares, conv=conv, gain=nn.Parameter(torch.ones(2, 1, 1, 1)))
    counts = count(model, (2, 4, 6))
    assert dict(counts.products) == {"conv.weight": 36 * (24 + 24 + 6), "gain": 0}
    mask = pathex.Mask({"conv.weight": torch.arange(36).view(2, 2, 3, 3) % 9 == 0})
    assert counts.multiply_adds(mask) == 4 * 54 and counts.parameters(mask) == 6


def test_precision_plays_no_part_and_the_model_is_left_as_it_was():
    model = pathex.models.CifarResNet(8, width=2).train()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    with unchanged(model):
        count(model, (3, 8, 8))
    found = [count(transposed().to(dtype), (4, 11, 9)) for dtype in (torch.float32, torch.bfloat16, torch.float64)]
    assert found[0] == found[1] == found[2]


def test_what_cannot_be_counted_is_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(InvalidInput, match=r"shape is \(2, 3\); allowed: channels, height and width"):
        count(model, (2, 3))
    with pytest.raises(InvalidInput, match=r"Sequential fails on an image of \(3, 3, 3\): .* in module '1' \(Linear\)"):
        count(model, (3, 3, 3))
    counts = count(model, (3, 2, 2))
    for mask in ({"fc.weight": torch.ones(2, 12, dtype=torch.bool)}, {"1.weight": torch.ones(2, 3, dtype=torch.bool)}):
        for number in (counts.parameters, counts.multiply_adds):
            with pytest.raises(MaskMismatch, match=r"does not fit the network: '(fc|1)\.weight' is not there"):
                number(pathex.Mask(mask))


def dense(name, width, *, classes=10, channels=3, **options):
    with torch.device("meta"):
        return pathex.models.create(name, classes, channels, width=width, **options)


def parameters(*args, **options):
    return sum(p.numel() for p in dense(*args, **options).parameters())


def products(name, width, size, **options):
    return count(dense(name, width, **options), (options.get("channels", 3), *size)).multiply_adds()


@pytest.mark.parametrize(("name", "step"), [("resnet20", 1), ("vgg11_bn", 1 / 512), ("resnet18_tiny", 1)])
def test_the_next_width_is_too_large(name, step):
    own, asked = {"classes": 7, "channels": 1}, {"num_classes": 7, "in_channels": 1}
    for most in (20_000, 61_234):
        width = matching_width(name, parameters=most, **asked)
        assert parameters(name, width, **own) <= most < parameters(name, width + step, **own)
        assert isinstance(width, type(step))
    width = matching_width(name, multiply_adds=3_000_001, image_size=16, **asked)
    assert products(name, width, (16, 16), **own) <= 3_000_001 < products(name, width + step, (16, 16), **own)


def test_a_network_matches_itself_and_nothing_is_drawn():
    state = torch.get_rng_state()
    for name, width in (("resnet20", 16), ("resnet20", 1), ("resnet18_tiny", 64), ("resnet32", 5)):
        assert matching_width(name, parameters=parameters(name, width)) == width
    assert matching_width("resnet20", multiply_adds=products("resnet20", 5, (8, 8)), image_size=8) == 5
    assert matching_width("vgg16_bn", parameters=parameters("vgg16_bn", 1.0, classes=100), num_classes=100) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_options_and_shapes_reach_the_network():
    wide = matching_width("resnet20", parameters=30_000, shortcut="pad")
    assert parameters("resnet20", wide, shortcut="pad") <= 30_000 < parameters("resnet20", wide + 1, shortcut="pad")
    width = matching_width("resnet20", multiply_adds=10**6, image_size=(8, 16))
    assert products("resnet20", width, (8, 16)) <= 10**6 < products("resnet20", width + 1, (8, 16))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("no dense 'resnet20' has at most 100 parameters; the narrowest, of width 1, has 1,", {"parameters": 100}),
        ("no dense 'resnet20' has at most 5 multiply-adds; the narrowest", {"multiply_adds": 5}),
        ("allowed: one of the two", {}),
        ("allowed: one of the two", {"parameters": 5, "multiply_adds": 5}),
        ("parameters must be a positive integer, got 0.5", {"parameters": 0.5}),
        ("unknown option of model 'resnet20': 'wide'", {"parameters": 10**5, "wide": 1}),
        (r"unknown model with a width 'timm:x'\. .*Known: resnet110,", {"name": "timm:x", "parameters": 10**6}),
    ],
)
def test_what_is_impossible_is_said(message, options):
    with refused(message, UnknownName if message.startswith("unknown") else InvalidInput):
        matching_width(**({"name": "resnet20"} | options))
