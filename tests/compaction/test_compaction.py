"""Compacted networks compute what the masked ones do, with less; a network of each family of the zoo too."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import pathex
from benchmarks.zoo.catalogue import build as build_family
from benchmarks.zoo.catalogue import catalogue
from brute_force.cases import Wired, draw, norms
from compaction.networks import NETWORKS, build, conv, head, thin
from pathex import Mask, compaction
from pathex.compaction.channels import RULES
from pathex.compaction.labels import settled
from pathex.errors import MaskMismatch, PathexError, UnknownName, UnsupportedOperation
from pathex.files import SEAL, read_safetensors, write_safetensors
from refusals import refused
from snapshots import unchanged

FIXED = {"perceptron", "flattened", "attention"}  # to one size of images


def masked(model, mask):
    return pathex.make_permanent(copy.deepcopy(model), mask)


def count(network):
    return sum(entry.numel() for entry in network.parameters())


def assert_same(small, dense, *inputs):
    with torch.no_grad():
        for x in inputs:
            torch.testing.assert_close(small(x), dense(x), rtol=1e-10, atol=1e-10)


def compacted(model, mask, x, *others):
    small = pathex.compact(model, mask, x)
    assert_same(small, masked(model, mask), x, *others)
    return small


def images(x, side=None, number=3):
    return torch.randn(number, x.shape[1], side or x.shape[2], side or x.shape[3], dtype=x.dtype)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_masked_network(name, seed):
    model, x = build(name, seed)
    mask = thin(model, seed)
    with unchanged(model):
        plan = compaction.plan(model, mask, x[:1])
        small = plan.apply()
    assert_same(small, masked(model, mask), x, images(x, number=1), *[] if name in FIXED else [images(x, side=13)])
    assert count(small) < count(model) or name == "shared"
    for weight, kept in plan.mask.items():
        assert small.get_parameter(weight).shape == kept.shape
        assert not small.get_parameter(weight)[~kept].any()
    assert set(plan.mask) == set(mask) and plan.mask.kept <= mask.kept


def chain(*layers, shift=0.0):
    model = nn.Sequential(*layers).double().eval()
    draw(model, 0)
    for norm in norms(model):
        nn.init.constant_(norm.bias, shift)
    return model, torch.randn(2, 2, 8, 8, dtype=torch.float64)


def removing(model, name, rows, dim=0):
    """A mask that removes some rows (or columns) of one weight."""
    kept = torch.ones_like(model.get_parameter(name), dtype=torch.bool)
    kept.index_fill_(dim, torch.tensor(rows, dtype=torch.int64), False)
    return Mask({name: kept})


def test_constants_behind_zero_padding_are_merged_into_one_channel():
    model, x = chain(conv(2, 8), conv(8, 4), head(4), shift=9.0)
    mask = removing(model.to(memory_format=torch.channels_last), "0.0.weight", [1, 2, 5])
    plan = compaction.plan(model, mask, x)
    small = plan.apply()
    assert small[0][0].out_channels == 6  # all of the three are 9 and more, and one stands for them
    assert "1 (its constant is read by 1.0.weight)" in plan.explain()
    assert small[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert_same(small, masked(model, mask), x, images(x, 5), images(x, 1))


def test_constants_go_into_the_next_bias_where_nothing_is_padded():
    model, x = chain(conv(2, 8), nn.Conv2d(8, 4, 3, bias=False), nn.ReLU(), head(4), shift=9.0)
    small = compacted(model, removing(model, "0.0.weight", [1, 2, 5]), x, images(x, 5))
    assert small[0][0].out_channels == 5 and small[1].bias.abs().min() > 0


def test_a_unit_that_its_relu_alone_holds_at_zero_goes():
    model, x = chain(conv(2, 6), conv(6, 4), head(4))
    model[0][1].running_mean.zero_(), nn.init.constant_(model[0][1].bias, -1.0)
    assert compacted(model, removing(model, "0.0.weight", [0, 3]), x)[0][0].out_channels == 4


def test_a_filter_whose_weights_sum_to_zero_is_not_dead():
    model, x = chain(conv(2, 4), conv(4, 4), head(4))
    model[0][0].weight.data[0] = torch.tensor([1.0, -1.0] * 9).view(2, 3, 3)
    assert compacted(model, removing(model, "0.0.weight", []), x)[0][0].out_channels == 4


def test_a_dead_branch_shrinks_to_one_channel_and_heads_of_attention_go_as_a_whole():
    model, x = build("residual", 0)
    small = compacted(model, removing(model, "1.branches.1.1.0.weight", range(6)), x)
    assert small[1].branches[1][0][0].out_channels == 1
    model, x = build("attention", 0)
    small = compacted(model, removing(model, "blocks.0.attn.proj.weight", range(4, 8), dim=1), x)
    first = small.blocks[0].attn
    assert (first.num_heads, first.qkv.out_features, first.proj.in_features) == (2, 24, 8)
    assert small.blocks[1].attn.num_heads == 3


def test_heads_that_only_train_keep_what_they_read():
    def auxiliary(net, x):
        x = net.first(x)
        return (net.last(x), net.other(x)) if net.training else net.last(x)

    last = nn.Sequential(conv(6, 4), head(4))
    model, x = chain(Wired(auxiliary, first=conv(2, 6), last=last, other=head(6)))
    small = pathex.compact(model, removing(model, "0.last.0.0.weight", [0, 1]), x).train()
    assert [len(out) for out in small(x)] == [2, 2] and small[0].last[0][0].in_channels == 6
    small = pathex.compact(model, removing(model, "0.last.1.2.weight", [0, 1], dim=1), x)
    assert small[0].last[0][0].out_channels == 2


@pytest.mark.parametrize("name", ["perceptron", "squeezed"])
def test_a_step_of_training_is_that_of_the_masked_network(name):
    model, x = build(name, 0)
    mask = thin(model, 0)
    plan = compaction.plan(model, mask, x)
    dense, small = masked(model, mask), plan.apply()
    for network, own in ((dense, mask), (small, plan.mask)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        pathex.attach(network, own, optimizer)
        network(x).square().sum().backward()
        optimizer.step()
    first = next(iter(mask))
    gradients = [network.get_parameter(first).grad.abs().sum() for network in (dense, small)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_the_small_network_is_a_network(tmp_path):
    model, x = build("squeezed", 0)
    model.train()
    small = pathex.compact(model, thin(model, 0), x)
    assert small.training and type(small) is type(model) and small[0][0].weight.requires_grad
    small.eval()
    expected = small(x)
    exported = torch.export.export(small, (x,)).module()
    assert torch.equal(copy.deepcopy(small)(x), expected)
    torch.testing.assert_close(exported(x), expected)
    compaction.save(small, tmp_path / "small.safetensors")
    other = build("squeezed", 1)[0]
    loaded = compaction.load(tmp_path / "small.safetensors", other)
    assert torch.equal(loaded(x), expected) and count(other) > count(loaded)
    compaction.save(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "small.safetensors").read_bytes()


def test_a_model_with_a_mask_attached():
    model, x = build("squeezed", 0)
    mask = thin(model, 0)
    pathex.attach(model, mask)
    small = pathex.compact(model, mask, x)
    small.load_state_dict(small.state_dict())
    small(x).sum().backward()
    assert_same(small, model, x)


def test_refusals(tmp_path):
    (model, x), path = build("squeezed", 0), tmp_path / "small.safetensors"
    compaction.save(pathex.compact(model, thin(model, 0), x), path)
    with refused("does not fit Sequential: '0.0.weight' is"):
        compaction.load(path, build("residual", 0)[0])
    with refused("not a readable safetensors file"):
        compaction.load(tmp_path / "missing", model)
    with refused("is not a network that pathex.compact made"):
        compaction.save(model, path)
    with refused("does not fit Sequential", MaskMismatch):
        pathex.compact(model, Mask({"0.0.weight": torch.ones(1, dtype=torch.bool)}), x)
    with refused("example_input has no images; allowed: one or more"):
        pathex.compact(model, thin(model, 0), x[:0])
    with refused(r"unknown weight '0\.0\.wait'\. Did you mean '0\.0\.weight'\?", UnknownName):
        compaction.channel_groups(model, x, ["0.0.wait"])
    single = Wired(lambda net, x: net.layer(x.float()), layer=nn.Linear(3, 3))
    with refused("does not run in float64", PathexError):
        pathex.compact(single, removing(single, "layer.weight", []), torch.ones(2, 3))
    noisy = Wired(lambda net, x: net.layer(x) + torch.rand(1, dtype=x.dtype), layer=nn.Linear(3, 3)).double()
    with refused("deterministic", PathexError):
        pathex.compact(noisy, removing(noisy, "layer.weight", []), x.new_ones(2, 3))


@pytest.mark.parametrize(
    "changes",
    [
        {"shapes": None},
        {"kept": {"0.0.weight": {"0": [10**6]}}},
        {"kept": {"0.0.weight": {"7": [0]}}},
        {"kept": 3.5},
        {"biases": ["nowhere"]},
        {"attributes": {"": {"training": True}}},
        {"attributes": {"0.0": {"forward": 3}}},
        {"attributes": {"0.0": {"stride": 2}}},
        {"attributes": {"0.0": {"in_channels": "2"}}},
    ],
    ids=str,
)
def test_recipes_of_strangers(tmp_path, changes):
    (model, x), path = build("squeezed", 0), tmp_path / "small.safetensors"
    compaction.save(pathex.compact(model, thin(model, 0), x), path)
    tensors, header = read_safetensors(path, "pathex_compaction")
    for recipe in (header["recipe"] | changes, changes, "x", None):
        about = json.dumps({**header, "recipe": recipe, "file": SEAL})
        write_safetensors(path, tensors, {"pathex_compaction": about})
        with refused("does not fit Sequential: "):
            compaction.load(path, model)


def test_code_that_counts_on_its_channels_keeps_them():
    form = lambda net, x: net.last(net.first(x).reshape(-1, 6, 64).sum(2))  # noqa: E731
    model = Wired(form, first=conv(2, 6), last=nn.Linear(6, 3)).double().eval()
    mask = Mask({**removing(model, "last.weight", [0, 1], dim=1), **removing(model, "first.0.weight", [])})
    plan = compaction.plan(model, mask, torch.randn(2, 2, 8, 8))
    assert plan.apply().first[0].out_channels == 6
    assert "6 (without it: RuntimeError: shape '[-1, 6, 64]' is invalid" in plan.explain()


@pytest.mark.parametrize(
    "also",
    [
        lambda y: y.masked_fill(torch.arange(3) == 0, -torch.inf),
        lambda y: torch.where(torch.arange(3) == 0, torch.nan, y),
        lambda y: (y, y > 0),
    ],
    ids=["infinite", "no number", "bool"],
)
def test_outputs_of_any_numbers_are_compared(also):
    """A network that divides by the number of its channels needs them; one that does not is cut."""
    parts = {"first": nn.Linear(4, 6, bias=False), "last": nn.Linear(6, 3)}
    kept = []
    for mean in (True, False):
        form = lambda net, x: also(net.last(net.first(x).relu() / (net.first.out_features if mean else 6)))  # noqa: B023, E731
        model = Wired(form, **parts).double().eval()
        small = pathex.compact(model, removing(model, "first.weight", [0, 1, 2]), torch.randn(5, 4).double())
        kept.append(small.first.out_features)
    assert kept == [6, 3]


def test_constants_stay_before_a_pool_that_divides_by_another_number():
    model, x = chain(conv(2, 8), nn.AvgPool2d(2, divisor_override=3), nn.Conv2d(8, 4, 1), head(4), shift=9.0)
    mask = Mask({**removing(model, "0.0.weight", [0, 1]), **removing(model, "2.weight", [2, 3], dim=1)})
    assert compacted(model, mask, x, images(x, 5))[0][0].out_channels == 6


@pytest.mark.parametrize("shared", ["module", "buffers"])
def test_statistics_that_have_two_names(shared, tmp_path):
    def form(net, x):
        x = net.block["norm"](net.first(x)).relu()
        return net.last((net.other if shared == "buffers" else net.block["norm"])(net.second(x)).relu())

    norm, other = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
    parts = {"first": conv(2, 6, norm=False), "second": conv(6, 6, norm=False), "last": head(6)}
    model = Wired(form, norm=norm, block=nn.ModuleDict({"norm": norm}), other=other, **parts).double().eval()
    draw(model, 0)
    other.running_mean, other.running_var = norm.running_mean, norm.running_var
    mask = Mask(
        {f"{n}.weight": removing(model, f"{n}.weight", [0, 3], dim=1)[f"{n}.weight"] for n in ("second", "last.2")}
    )
    small = compacted(model, mask, torch.randn(2, 2, 8, 8, dtype=torch.float64))
    assert len(small.norm.running_mean) == small.second.out_channels == 4
    if shared == "buffers":
        assert small.other.running_mean is small.norm.running_mean
    compaction.save(small, tmp_path / "small.safetensors")
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    assert_same(compaction.load(tmp_path / "small.safetensors", model), small, x)


def test_places_of_an_adaptive_max_pool_follow_its_channels():
    pool = nn.AdaptiveMaxPool1d(1, return_indices=True)
    form = lambda net, x: net.last(torch.cat([part.mT.to(x.dtype) for part in pool(net.first(x).mT)], 1))  # noqa: E731
    model = Wired(form, first=nn.Linear(3, 6), last=nn.Linear(6, 2)).double()
    mask = removing(model, "last.weight", [1, 4], dim=1)
    small = compacted(model, mask, torch.randn(2, 7, 3, dtype=torch.float64))
    assert small.first.out_features == 4


def test_a_wrong_constant_keeps_what_it_was_folded_into(monkeypatch):
    def wrong(of, node):
        value = of(node.args[0])
        return settled(value.labels, value.unknown, value.number.tanh() + 1)

    monkeypatch.setitem(RULES, "tanh", wrong)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    for rows in ([0, 1], [0, 1, 2, 3, 4, 5]):
        mask = removing(model, "0.weight", rows)
        small = compacted(model, mask, torch.randn(2, 3, dtype=torch.float64))
        assert small[0].out_features == 6


def test_a_parameter_that_is_seen_in_another_form():
    """A matrix that is added as a vector."""
    layers = {"first": nn.Linear(3, 8), "second": nn.Linear(8, 2), "table": nn.Parameter(torch.randn(2, 4))}
    network = Wired(lambda net, x: net.second(net.first(x) + net.table.view(8)), **layers).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    mask = removing(network, "second.weight", [5, 6, 7], dim=1)
    small = pathex.compact(network, mask, x)
    torch.testing.assert_close(small(x), pathex.make_permanent(network, mask)(x), rtol=0, atol=1e-12)


SPARSITIES = (0.9, 0.95, 0.982, 0.99)
METHODS = ("random", "magnitude", "synflow", "px")
SMALLEST = {each.family: each for each in sorted(catalogue(), key=lambda each: -each.parameters - each.multiply_adds)}


def leaves(network, x):
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(network(x)) if isinstance(leaf, torch.Tensor)]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SMALLEST)), ids=sorted(SMALLEST))
@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_families(number):
    """One method and sparsity each, in turns: all of them on all families would take a day."""
    model, x, y = build_family(SMALLEST[sorted(SMALLEST)[number]])
    generator = torch.Generator().manual_seed(0)
    for norm in norms(model):
        for entry, level in ((norm.running_mean, 0), (norm.running_var, 1), (norm.weight, 1), (norm.bias, 0)):
            entry.data.copy_(level + 0.3 * torch.randn(entry.shape, generator=generator).clamp(-2, 2))
    model, x = model.double().eval(), x.double()
    sparsity, method = SPARSITIES[number // len(METHODS) % len(SPARSITIES)], METHODS[number % len(METHODS)]
    option = {"per_sample": "one"} if method == "synflow" else {}
    how = {"sparsity": sparsity, "data": [(x, y)], "rounds": 2, "progress": False}
    try:
        mask = pathex.prune(model, method, **how, **option).mask
    except UnsupportedOperation:  # no path method reads a recurrent network
        mask = pathex.prune(model, "magnitude", **how).mask
    small, dense = pathex.compact(model, mask, x[:1]), masked(model, mask)
    for images in (x, x[:1], nn.functional.interpolate(x, scale_factor=2)):
        try:
            expected = leaves(dense, images)
        except Exception:  # the network takes no other sizes
            continue
        for found, one in zip(leaves(small, images), expected, strict=True):
            torch.testing.assert_close(found, one, rtol=0, atol=1e-10 * max(1e-6, float(one.abs().max())))
