import copy
import math
from functools import partial

import pytest
import torch

import pathex
from brute_force import cases
from pathex.analysis import examine, flipped, shuffled
from pathex.errors import InvalidInput, MaskMismatch
from pathex.masks import Mask
from snapshots import unchanged


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return pathex.models.create("resnet20", width=8)


def random_mask(model):
    return pathex.Mask(cases.random_mask(model, 1, 0.3), {"method": "px"})


def test_shuffled_masks_keep_their_counts_and_nothing_else():
    mask = random_mask(network())
    moved = shuffled(mask, 0)
    assert moved.counts() == mask.counts() and moved.metadata == mask.metadata and list(moved) == list(mask)
    # Two independent masks of density d overlap in d / (2 - d) of their union: 0.176.
    assert moved.jaccard(mask) == pytest.approx(0.3 / 1.7, abs=0.01)
    assert moved == shuffled(mask, 0) != shuffled(mask, 1)
    backwards = pathex.Mask({name: mask[name] for name in reversed(list(mask))})
    assert shuffled(backwards, 0) == moved
    assert mask == random_mask(network())


def test_every_place_is_as_likely_and_layers_move_independently():
    mask = pathex.Mask({"w": torch.tensor([[True, False], [False, False], [False, True]])})
    taken = sum(shuffled(mask, seed)["w"].double() for seed in range(3000))
    # 1000 expected at each of the six places, standard deviation 25.8.
    assert (taken - 1000).abs().max() < 4 * 25.8
    entry = torch.arange(400).view(20, 20) % 2 == 0
    moved = shuffled(pathex.Mask({"a": entry, "b": entry.clone()}), 0)
    assert not torch.equal(moved["a"], moved["b"])


def test_flipped_weights_keep_their_magnitudes():
    model = network()
    before = copy.deepcopy(model.state_dict())
    with unchanged(model):
        other = flipped(model, 0)
    assert set(other) == set(random_mask(model))
    assert all(torch.equal(weight.abs(), before[name].abs()) for name, weight in other.items())
    turned = sum(int((weight != before[name]).sum()) for name, weight in other.items())
    total = sum(weight.numel() for weight in other.values())
    assert turned / total == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(total))
    assert all(torch.equal(weight, flipped(model, 0)[name]) for name, weight in other.items())
    assert any(not torch.equal(weight, flipped(model, 1)[name]) for name, weight in other.items())
    model.load_state_dict(other, strict=False)
    assert torch.equal(model.get_parameter("fc.weight"), other["fc.weight"])
    assert torch.equal(model.get_parameter("fc.bias"), before["fc.bias"])


def test_what_does_not_fit_is_named():
    model = network()
    with pytest.raises(InvalidInput, match=r"CifarResNet has no parameter named 'head\.weight'"):
        flipped(model, 0, names=["head.weight"])
    with pytest.raises(InvalidInput, match="seed must be an integer of at least 0, got None"):
        shuffled(Mask({"weight": torch.ones(2) > 0}), None)
    with pytest.raises(MaskMismatch, match=r"does not fit CifarResNet.*nowhere"):
        examine(model, Mask({"nowhere": torch.ones(2) > 0}), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("call", [partial(pathex.score, method="px"), pathex.ntk.kernel, pathex.ntk.predict])
def test_a_name_is_no_network(call):
    with pytest.raises(InvalidInput, match=r"model must be a torch.nn.Module, not str 'resnet20'"):
        call("resnet20", **{"data" if isinstance(call, partial) else "x": torch.ones(1, 3)})


@pytest.mark.gpu
def test_draws_are_the_same_on_a_gpu():
    model = network()
    here, there = flipped(model, 0), flipped(model.cuda(), 0)
    assert all(there[name].is_cuda and torch.equal(there[name].cpu(), entry) for name, entry in here.items())
