import pytest
import torch

import pathex
from pathex.analysis import count, matching_width
from pathex.errors import InvalidInput, UnknownName


def parameters(name, width, **options):
    return sum(p.numel() for p in pathex.models.create(name, width=width, **options).parameters())


@pytest.mark.parametrize(("name", "step"), [("resnet20", 1), ("vgg11_bn", 1 / 512), ("resnet18_tiny", 1)])
def test_the_next_width_is_too_large(name, step):
    for most in (20_000, 60_000, 61_234):
        width = matching_width(name, parameters=most, num_classes=7, in_channels=1)
        assert parameters(name, width, num_classes=7, in_channels=1) <= most
        assert parameters(name, width + step, num_classes=7, in_channels=1) > most
        assert isinstance(width, type(step))
    for most in (3_000_000, 3_000_001):
        width = matching_width(name, multiply_adds=most, num_classes=7, in_channels=1, image_size=16)
        costs = [
            count(pathex.models.create(name, 7, 1, width=candidate), (1, 16, 16)).multiply_adds()
            for candidate in (width, width + step)
        ]
        assert costs[0] <= most < costs[1]


def test_a_network_matches_itself():
    for name, width in (("resnet20", 16), ("resnet20", 1), ("resnet18_tiny", 64), ("resnet32", 5)):
        with torch.device("meta"):
            model = pathex.models.create(name, width=width)
        assert matching_width(name, parameters=parameters(name, width)) == width
        assert matching_width(name, multiply_adds=count(model, (3, 32, 32)).multiply_adds()) == width
    assert matching_width("vgg16_bn", parameters=parameters("vgg16_bn", 1.0, num_classes=100), num_classes=100) == 1
    assert matching_width("resnet20", parameters=10**6) > 16


def test_a_ticket_and_its_small_dense_network():
    model = pathex.models.create("resnet20")
    mask = pathex.prune(model, "magnitude", sparsity=0.9, data=torch.randn(2, 3, 32, 32), progress=False).mask
    ticket = count(model, (3, 32, 32))
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
    costs = [count(pathex.models.create("resnet20", width=w), (3, 8, 16)).multiply_adds() for w in (width, width + 1)]
    assert costs[0] <= 10**6 < costs[1]


@pytest.mark.parametrize(
    ("message", "name", "options"),
    [
        (
            "no dense 'resnet20' has at most 100 parameters; the narrowest, of width 1, has 1,",
            "resnet20",
            {"parameters": 100},
        ),
        ("no dense 'resnet20' has at most 5 multiply-adds; the narrowest", "resnet20", {"multiply_adds": 5}),
        ("allowed: one of the two", "resnet20", {}),
        ("allowed: one of the two", "resnet20", {"parameters": 5, "multiply_adds": 5}),
        ("parameters must be a positive integer, got 0.5", "resnet20", {"parameters": 0.5}),
        ("unknown option of model 'resnet20': 'wide'", "resnet20", {"parameters": 10**5, "wide": 1}),
    ],
)
def test_what_is_impossible_is_said(message, name, options):
    with pytest.raises(InvalidInput, match=message) as error:
        matching_width(name, **options)
    assert "\n" not in str(error.value)


def test_networks_without_a_width_are_named():
    with pytest.raises(UnknownName, match=r"unknown model with a width 'timm:resnet50'\. .*Known: resnet110,"):
        matching_width("timm:resnet50", parameters=10**6)
