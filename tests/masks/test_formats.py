import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

import pathex
from brute_force.cases import Wired
from model_factories import small
from pathex.errors import InvalidInput, MaskMismatch, PathexWarning
from pathex.masks import Mask, codes
from pathex.masks import formats as converters
from refusals import refused

NAMES = ("conv.weight", "weight", "attn.in_proj_weight", "blocks.0.fc.weight")
SHAPES = st.lists(st.lists(st.integers(1, 11), min_size=1, max_size=4), min_size=1, max_size=4)


def drawn(shapes, seed):
    """A random mask, some of whose kept weights may be zero, and weights with other tensors beside them."""
    source = torch.Generator().manual_seed(seed)
    entries = {name: torch.rand(shape, generator=source) < 0.5 for name, shape in zip(NAMES, shapes, strict=False)}
    weights = {name: torch.randn(entry.shape, generator=source) for name, entry in entries.items()}
    weights |= {"norm.running_mean": torch.zeros(3), "norm.num_batches_tracked": torch.tensor(7)}
    return Mask(entries), weights


def tied():
    """Two linear layers with one weight, two names of one module, attention, and a normalisation."""
    first, second, conv = nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(1, 2, 3)
    second.weight = first.weight
    more = {"norm": nn.BatchNorm2d(2), "attention": nn.MultiheadAttention(4, 2)}
    return Wired(None, first=first, second=second, conv=conv, again=conv, **more)


def half(model):
    source = torch.Generator().manual_seed(0)
    weights = pathex.masks.prunable.prunable_weights(model)
    return Mask({name: torch.rand(weight.shape, generator=source) < 0.5 for name, weight in weights.items()})


ROUND_TRIPS = {
    "bool": lambda mask, _: converters.from_tensors(converters.to_tensors(mask)),
    "uint8": lambda mask, _: converters.from_tensors(converters.to_tensors(mask, torch.uint8)),
    "bfloat16": lambda mask, _: converters.from_tensors(converters.to_tensors(mask, torch.bfloat16)),
    "torch-prune": lambda mask, w: converters.from_torch_prune(converters.to_torch_prune(mask, w)),
    "sparse": lambda mask, w: converters.from_sparse(converters.to_sparse(mask, w)),
}


@pytest.mark.parametrize("form", ROUND_TRIPS)
@settings(max_examples=40, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 999), zeros=st.booleans())
def test_round_trips(form, shapes, seed, zeros):
    mask, weights = drawn(shapes, seed)
    if zeros:
        weights = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    before = copy.deepcopy(weights)
    assert ROUND_TRIPS[form](mask, weights) == mask
    assert list(ROUND_TRIPS[form](mask, weights)) == list(mask)
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())


@settings(max_examples=40, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 999))
def test_weights_and_their_zeros(shapes, seed):
    mask, weights = drawn([[2, *shape] for shape in shapes], seed)
    mask |= Mask({name: torch.zeros_like(entry).index_fill(0, torch.tensor(0), True) for name, entry in mask.items()})
    sparse = converters.to_zeros(mask, weights)
    assert converters.from_zeros(sparse) == mask
    assert all(torch.equal(sparse[name], weights[name] * mask[name]) for name in mask)
    back = converters.weights_from_sparse(converters.to_sparse(mask, weights))
    assert back.keys() == weights.keys() and all(torch.equal(back[name], sparse[name]) for name in back)


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(0, 40), max_size=3), density=st.floats(0, 1), seed=st.integers(0, 999))
def test_a_code_gives_its_entries_back(shape, density, seed):
    entry = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    assert torch.equal(codes.decode(codes.encode(entry), tuple(shape)), entry)


@pytest.mark.parametrize("density", [0.001, 0.018, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_a_code_is_hardly_longer_than_the_entropy(density):
    entry = torch.rand(400_000, generator=torch.Generator().manual_seed(0)) < density
    p = float(entry.double().mean())
    entropy = -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) * len(entry) / 8
    assert entropy < len(codes.encode(entry)) < 1.04 * entropy + 16


def test_damaged_codes_are_refused():
    mask = Mask({"a": torch.rand(40, 50, generator=torch.Generator().manual_seed(0)) < 0.1})
    packed = converters.to_sparse(mask, {"a": torch.randn(40, 50)})
    swapped = torch.cat([packed[codes.CODES][:10], packed[codes.CODES][10:].flip(0)])
    table = torch.frombuffer(bytearray(b"no table"), dtype=torch.uint8)
    for changed, message in (
        ({codes.TABLE: table}, "'pathex.table' is damaged"),
        ({codes.CODES: packed[codes.CODES][:-20]}, "'pathex.table' is damaged"),
        ({codes.CODES: swapped}, "damaged|'a' has shape"),
        ({"a": packed["a"][1:]}, r"'a' has shape \(\d+,\); the mask keeps \d+ of its weights"),
    ):
        with pytest.raises(MaskMismatch, match=message):
            converters.from_sparse({**packed, **changed})
    for missing in (codes.CODES, codes.TABLE, "a"):
        with pytest.raises(MaskMismatch, match=missing):
            converters.from_sparse({name: tensor for name, tensor in packed.items() if name != missing})


def sparse_net():
    net = small()
    return pathex.make_permanent(net, half(net))  # type: ignore[return-value]


def test_the_zeros_of_a_model_are_a_start():
    net = sparse_net()
    start = converters.from_zeros(net)
    assert start == half(net) == converters.from_zeros(net.state_dict()) == converters.from_zeros(net.state_dict(), net)
    assert list(converters.from_zeros(net, ignore=["4"])) == ["0.weight"]
    assert "1.weight" in converters.from_zeros(net, prunable=[nn.BatchNorm2d])
    result = pathex.prune(net, "magnitude", sparsity=0.75, data=torch.randn(2, 1, 4, 4), mask=start)
    assert (result.mask - start).kept == 0 and result.mask.kept == round(0.25 * start.total)
    with pytest.raises(InvalidInput, match="start mask keeps"):
        pathex.prune(net, "magnitude", sparsity=0.2, data=torch.randn(2, 1, 4, 4), mask=start)
    nn.init.zeros_(net[4].weight)  # type: ignore[arg-type]
    with pytest.warns(PathexWarning, match=r"4\.weight: zero throughout"):
        assert converters.from_zeros(net).counts()["4.weight"].kept == 0


def test_a_model_pruned_by_torch():
    net = small()
    torch_prune.random_unstructured(net[0], "weight", 0.5)
    torch_prune.l1_unstructured(net[0], "weight", 0.5)  # a second time: a container of methods
    torch_prune.ln_structured(net[4], "weight", 0.5, n=2, dim=0)
    expected = {f"{i}.weight": net[i].weight_mask == 1 for i in (0, 4)}
    for source in (net, net.state_dict()):
        assert converters.from_torch_prune(source) == Mask(expected)  # type: ignore[arg-type]
    for i in (0, 4):
        torch_prune.remove(net[i], "weight")
    assert converters.from_zeros(net) == Mask(expected)


def test_a_mask_applied_as_torch_prunes():
    model = tied()
    plain = copy.deepcopy(model)
    mask = half(model)
    state = converters.to_torch_prune(mask, model)
    assert converters.apply_torch_prune(model, mask) is model
    assert torch_prune.is_pruned(model) and converters.from_torch_prune(model) == mask
    assert converters.complete(converters.from_torch_prune(model.state_dict()), plain) == mask
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    pathex.make_permanent(plain, mask)
    x = torch.randn(2, 1, 4)
    assert torch.equal(model.second(x), plain.second(x))
    assert torch.equal(model.attention(x, x, x)[0], plain.attention(x, x, x)[0])
    for module in (model.first, model.second, model.conv, model.attention.out_proj):
        torch_prune.remove(module, "weight")
    torch_prune.remove(model.attention, "in_proj_weight")
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_shared_weights_travel_under_all_their_names_and_what_is_not_named_is_filled():
    model = tied()
    mask = half(model)
    kept = converters.to_sparse(mask, model)
    assert kept["first.weight"].equal(kept["second.weight"]) and kept["conv.weight"].equal(kept["again.weight"])
    assert converters.complete(converters.from_sparse(kept), model) == mask
    zeros = converters.to_zeros(mask, model)
    assert torch.equal(zeros["first.weight"], zeros["second.weight"])
    assert converters.from_zeros(zeros, model) == mask
    some = Mask({"second.weight": torch.eye(4) > 0, "norm.bias": torch.ones(2) > 0}, {"note": 1})
    whole = converters.complete(some, model)
    assert list(whole) == list(half(model)) and whole.metadata == {"note": 1}
    assert torch.equal(whole["first.weight"], torch.eye(4) > 0)
    assert all(entry.all() for name, entry in whole.items() if name != "first.weight")


def pruned_in_two_ways():
    model = tied()
    for module, keep in ((model.first, True), (model.second, False)):
        torch_prune.custom_from_mask(module, "weight", torch.full((4, 4), keep))
    return model


def without_weight(name):
    return converters.complete(Mask({name: torch.zeros(2) > 0}), tied())


FROM_ZEROS, TO_ZEROS = converters.from_zeros, converters.to_zeros
FROM_TENSORS, FROM_PRUNE = converters.from_tensors, converters.from_torch_prune


@pytest.mark.parametrize(
    ("convert", "tensors", "message"),
    [
        (FROM_TENSORS, {"a": torch.tensor([0.0, 0.5])}, "'a' holds 0.5; allowed: 0 and 1"),
        (FROM_TENSORS, {"a": torch.tensor([1, 2], dtype=torch.uint8)}, "'a' holds 2"),
        (FROM_TENSORS, {"a": torch.tensor([1.0, float("nan")])}, "'a' holds nan"),
        (FROM_TENSORS, {"a": [1, 0]}, "'a' must be a tensor, not list"),
        (FROM_TENSORS, {}, "at least one entry"),
        (FROM_PRUNE, {"0.weight": torch.ones(2), "attn_mask": torch.ones(2)}, "nothing is pruned"),
        (FROM_PRUNE, {"w_orig": torch.ones(2), "w_mask": torch.ones(3)}, r"'w_mask' .* \(3,\) and 'w_orig' has \(2,\)"),
        (FROM_PRUNE, {"w_orig": torch.ones(2), "w_mask": torch.tensor([1.0, 0.5])}, "'w' holds 0.5"),
        (FROM_PRUNE, pruned_in_two_ways(), r"'first\.weight' and 'second\.weight' are one weight"),
        (FROM_ZEROS, {"bias": torch.zeros(3)}, "no floating-point tensor has two or more"),
        (lambda tensors: FROM_ZEROS(tensors, small()), {"0.weight": torch.ones(4, 1, 3, 3)}, r"lack 4\.weight"),
        (
            lambda tensors: FROM_ZEROS({**small().state_dict(), **tensors}, small()),
            {"0.weight": torch.ones(4, 1, 1, 1)},
            r"'0\.weight' has shape \(4, 1, 1, 1\) in the mask and \(4, 1, 3, 3\)",
        ),
        (without_weight, "gone", "'gone' is not there"),
    ],
)
def test_tensors_that_are_no_mask_are_refused(convert, tensors, message):
    with refused(message, MaskMismatch):
        convert(tensors)


@pytest.mark.parametrize("convert", [TO_ZEROS, converters.to_torch_prune, converters.to_sparse])
def test_masks_that_do_not_fit_are_refused(convert):
    with refused(r"kept weights of '0\.weight' are zero"):
        TO_ZEROS(Mask({"0.weight": torch.ones(4, 1, 3, 3) > 0}), sparse_net())
    model = nn.Sequential(nn.Linear(3, 4))
    mask = Mask({"0.weight": torch.ones(2, 3) > 0, "gone.weight": torch.ones(1) > 0})
    for weights in (model, model.state_dict()):
        with pytest.raises(MaskMismatch, match=r"'gone\.weight' is not there.*'0\.weight' has .*\(2, 3\).*\(4, 3\)"):
            convert(mask, weights)
    with pytest.raises(MaskMismatch, match=r"'gone\.weight' is not there"):
        converters.apply_torch_prune(model, mask)
    assert not torch_prune.is_pruned(model)
