import pytest
import torch

import pathex
from pathex.analysis import count, matching_width
from pathex.errors import InvalidInput, UnknownName


def network(name, width, *, classes=10, channels=3, **options):
    with torch.device("meta"):
        return pathex.models.create(name, classes, channels, width=width, **options)


def parameters(*args, **options):
    return sum(p.numel() for p in network(*args, **options).parameters())


def products(name, width, size, **options):
    return count(network(name, width, **options), (options.get("channels", 3), *size)).multiply_adds()


@pytest.mark.parametrize(("name", "step"), [("resnet20", 1), ("vgg11_bn", 1 / 512), ("resnet18_tiny", 1)])
def test_the_next_width_is_too_large(name, step):
    own, asked = {"classes": 7, "channels": 1}, {"num_classes": 7, "in_channels": 1}
    for most in (20_000, 60_000, 61_234):
        width = matching_width(name, parameters=most, **asked)
        assert parameters(name, width, **own) <= most < parameters(name, width + step, **own)
        assert isinstance(width, type(step))
    width = matching_width(name, multiply_adds=3_000_001, image_size=16, **asked)
    assert products(name, width, (16, 16), **own) <= 3_000_001 < products(name, width + step, (16, 16), **own)


def test_a_network_matches_itself():
    for name, width in (("resnet20", 16), ("resnet20", 1), ("resnet18_tiny", 64), ("resnet32", 5)):
        assert matching_width(name, parameters=parameters(name, width)) == width
    assert matching_width("resnet20", multiply_adds=products("resnet20", 5, (8, 8)), image_size=8) == 5
    assert matching_width("vgg16_bn", parameters=parameters("vgg16_bn", 1.0, classes=100), num_classes=100) == 1
    assert matching_width("resnet20", parameters=10**6) > 16


def test_a_ticket_and_its_small_dense_network():
    model = pathex.models.create("resnet20", width=8)
    mask = pathex.prune(model, "magnitude", sparsity=0.9, data=torch.randn(2, 3, 8, 8), progress=False).mask
    ticket = count(model, (3, 8, 8))
    width = matching_width("resnet20", parameters=ticket.parameters(mask))
    assert 0.6 * ticket.parameters(mask) < parameters("resnet20", width) <= ticket.parameters(mask)


def test_nothing_is_drawn():
    state = torch.get_rng_state()
    matching_width("resnet20", multiply_adds=10**6)
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
    ],
)
def test_what_is_impossible_is_said(message, options):
    with pytest.raises(InvalidInput, match=message) as error:
        matching_width("resnet20", **options)
    assert "\n" not in str(error.value)


def test_networks_without_a_width_are_named():
    with pytest.raises(UnknownName, match=r"unknown model with a width 'timm:resnet50'\. .*Known: resnet110,"):
        matching_width("timm:resnet50", parameters=10**6)
