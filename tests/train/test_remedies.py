"""HAM, Sign-In and SparseOpt against loops over single weights, and beside masks, fixed and moving."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import moving_masks
import pathex
from brute_force import remedies as twin
from pathex.pruning import dynamic
from pathex.train import attach_remedy, check_recipe
from pathex.train.remedies import unit_factors
from refusals import refused

STEPS = 12
OPTIONS = {"ham": {"alpha": 3.0, "beta": 0.2}, "sign-in": {"every": 3}, "sparseopt": {}}
REMEDIES = sorted(OPTIONS)


class Pair(nn.Module):
    """Two layers, with weights of the twin."""

    def __init__(self, weights):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.tensor(weight)) for weight in weights)

    def forward(self, x):
        return torch.tanh(x @ self.first.T) @ self.second.T


def holder(weight):
    """A module with one weight, ``w``, and a vector that nothing trains."""
    return nn.ParameterDict({"w": weight, "other": nn.Parameter(torch.zeros(1))})


def case(seed):
    source = np.random.default_rng(seed)
    weights = [source.normal(size=shape) for shape in ((4, 3), (2, 4))]
    masks = [source.random(weight.shape) < 0.6 for weight in weights]
    for mask in masks:
        mask[0, 0] = True
    return weights, masks, source.normal(size=(5, 3)), source.normal(size=(5, 2))


def optimizer_of(kind, parameters, decay):
    if kind == "sgd":
        return SGD(parameters, lr=1.0, momentum=0.9, weight_decay=decay)
    return AdamW(parameters, lr=1.0, weight_decay=decay)


def steps(model, optimizer, remedy, x, y, rates):
    for number, lr in enumerate(rates, 1):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        remedy.end_epoch(number)


def rates(kind):
    return [(0.1 if kind == "sgd" else 0.02) / (1 + number) for number in range(STEPS)]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("name", REMEDIES)
def test_a_remedy_is_that_of_single_weights(name, kind):
    for seed in range(3):
        weights, masks, x, y = case(seed)
        model = Pair(weights)
        mask = pathex.Mask({"first": torch.tensor(masks[0]), "second": torch.tensor(masks[1])})
        optimizer = optimizer_of(kind, model.parameters(), 0.05)
        handle = pathex.attach(model, mask, optimizer)
        remedy = attach_remedy(name, optimizer, model, lambda handle=handle: handle.mask, OPTIONS[name])
        steps(model, optimizer, remedy, torch.tensor(x), torch.tensor(y), rates(kind))
        given = {"kind": kind, "decay": 0.05, **OPTIONS[name]}
        expected = twin.train(name, weights, masks, x, y, rates(kind), **given)
        plain = twin.train("none", weights, masks, x, y, rates(kind), kind=kind, decay=0.05)
        for parameter, value, other, kept in zip(model.parameters(), expected, plain, mask.values(), strict=True):
            torch.testing.assert_close(parameter.detach(), torch.tensor(value), rtol=1e-10, atol=1e-12)
            # The remedy does something, but for a factor of every gradient, which Adam divides out again.
            assert (np.abs(value - other).max() > 1e-4) == ((name, kind) != ("sparseopt", "adamw"))
            assert not parameter[~kept].any()


@pytest.mark.parametrize("name", REMEDIES)
def test_vectors_of_kept_weights_train_as_the_masked_network(name):
    weights, masks, x, y = case(7)
    entries = dict(zip(("first", "second"), map(torch.tensor, masks), strict=True))

    class Compact(Pair):
        def forward(self, inputs):
            dense = [torch.zeros(mask.shape, dtype=torch.float64) for mask in masks]
            first, second = (
                zeros.masked_scatter(kept, values)
                for zeros, kept, values in zip(dense, entries.values(), self.parameters(), strict=True)
            )
            return torch.tanh(inputs @ first.T) @ second.T

    model = Compact([weight[mask] for weight, mask in zip(weights, masks, strict=True)])
    optimizer = optimizer_of("sgd", model.parameters(), 0.05)
    remedy = attach_remedy(name, optimizer, model, lambda: entries, OPTIONS[name])
    steps(model, optimizer, remedy, torch.tensor(x), torch.tensor(y), rates("sgd"))
    expected = twin.train(name, weights, masks, x, y, rates("sgd"), decay=0.05, **OPTIONS[name])
    for parameter, value, mask in zip(model.parameters(), expected, masks, strict=True):
        torch.testing.assert_close(parameter.detach(), torch.tensor(value[mask]), rtol=1e-10, atol=1e-12)


def test_ham_keeps_zeros_and_signs_and_caps_its_exponent():
    weight = nn.Parameter(torch.tensor([[0.0, -0.0, 1.0, -2.0, 3.0]], dtype=torch.float64))
    optimizer = SGD([weight], lr=0.0)
    attach_remedy("ham", optimizer, holder(weight), dict, {"alpha": 1e6, "beta": 0.0})
    weight.grad = torch.tensor([[5.0, -5.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    optimizer.step()
    assert torch.equal(weight, weight.new_tensor([[0.0, -0.0, 1.0, -2.0, 3.0]]))  # no rate, no change
    optimizer.param_groups[0]["lr"] = 1e-12
    weight.grad *= 1e9
    optimizer.step()
    expected = weight.new_tensor([[-5e-3, 5e-3, 1 - 1e-3, -2 - 1e-3, 3.0]])
    expected *= torch.tensor([[np.exp(5), np.exp(5), np.exp(-5), np.exp(5), 1.0]])
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=0)


def test_balancing_leaves_the_function_and_sets_the_factors():
    weights, _, x, y = case(11)
    model = Pair(weights)
    optimizer = optimizer_of("sgd", model.parameters(), 0.1)
    remedy = attach_remedy("sign-in", optimizer, model, dict, {"every": STEPS + 1})
    steps(model, optimizer, remedy, torch.tensor(x), torch.tensor(y), rates("sgd"))
    before, outputs = copy.deepcopy(model.state_dict()), model(torch.tensor(x))
    gaps = [m.square() - w.square() for m, w in remedy.state_dict()["factors"]]
    assert all((gap - 1).abs().max() > 1e-3 for gap in gaps)  # weight decay moved it
    remedy.end_epoch(STEPS + 1)
    torch.testing.assert_close(model(torch.tensor(x)), outputs, rtol=1e-13, atol=1e-13)
    for name, (m, w) in zip(before, remedy.state_dict()["factors"], strict=True):
        assert torch.equal(m * w, model.get_parameter(name)) and (m > 0).all()
        torch.testing.assert_close(m.square() - w.square(), torch.ones_like(m), rtol=0, atol=1e-12)
        torch.testing.assert_close(m * w, before[name], rtol=1e-14, atol=0)


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("name", REMEDIES)
def test_a_mask_that_moves_keeps_its_zeros_and_begins_anew_where_it_grows(name, method):
    model = moving_masks.exact()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    start = moving_masks.random_mask(model)
    handle = dynamic.attach(model, start, optimizer, method=method, steps=40, every=4, fraction=0.5, until=1.0)
    options = {"alpha": 20.0} if name == "ham" else {}
    remedy = attach_remedy(name, optimizer, model, lambda: handle.mask, options)
    source = torch.Generator().manual_seed(0)
    grown = 0
    for _ in range(11):
        before, mask = copy.deepcopy(model.state_dict()), handle.mask
        x = torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=source)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        for key, kept in handle.mask.items():
            weight = model.get_parameter(key)
            assert not weight[~kept].any()
            stayed = kept & mask[key]
            if handle.mask is not mask and method == "rigl":  # the update takes the place of the step
                assert torch.equal(weight[stayed], before[key][stayed])
            if handle.mask is not mask:
                new = kept & ~mask[key]
                grown += int(new.sum())
                assert not weight[new].any()
                if name == "sign-in":
                    with torch.no_grad():
                        factors = remedy._factors[weight]
                        remedy._renew(weight, factors)
                    assert (factors[0][new] == 1).all() and not factors[1][new].any()
                    assert not remedy._inner.state[factors]["momentum_buffer"][:, new].any()
    assert grown > 0 and handle.updates == 2 and handle.mask != start


def test_sparseopt_follows_the_mask_in_force():
    weight = nn.Parameter(torch.zeros(2, 4, dtype=torch.float64))
    masks = [{"w": torch.tensor([[True, False, False, False], [True] * 4])}]
    optimizer = SGD([weight], lr=1.0)
    attach_remedy("sparseopt", optimizer, holder(weight), lambda: masks[-1])
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        before = weight.detach().clone()
        optimizer.step()
        rows = [twin.unit_factor(masks[-1]["w"].numpy(), row) for row in range(2)]
        torch.testing.assert_close(before - weight.detach(), weight.new_tensor(rows)[:, None].expand(2, 4))
        masks.append({"w": torch.tensor([[True, True, False, False], [True, False, False, False]])})


def test_factors_of_units_are_counted():
    source = np.random.default_rng(3)
    mask = source.random((4, 3, 2, 2)) < 0.4
    found = unit_factors(torch.tensor(mask))
    for unit in range(4):
        assert found[unit].unique().tolist() == pytest.approx([twin.unit_factor(mask, unit)], rel=1e-12)
    # A transposed convolution of two groups: outputs of the first follow inputs 0 and 1, of the second 2 and 3.
    turned = np.stack([mask[2 * group : 2 * group + 2, output] for group in range(2) for output in range(3)])
    found = unit_factors(torch.tensor(mask), groups=2)
    for row, place in enumerate(np.ndindex(2, 3)):
        part = found[2 * place[0] : 2 * place[0] + 2, place[1]]
        assert part.unique().tolist() == pytest.approx([twin.unit_factor(turned, row)], rel=1e-12)
    assert torch.equal(unit_factors(torch.ones(3, 5, dtype=torch.bool)), torch.ones(3, 5, dtype=torch.float64))
    assert not unit_factors(torch.zeros(3, 5, dtype=torch.bool)).any()


def test_a_transposed_convolution_is_found_and_vectors_without_unit_are_left_alone():
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6)).double()
    source = torch.Generator().manual_seed(2)
    mask = {name: torch.rand(p.shape, generator=source) < 0.5 for name, p in model.named_parameters()}
    before = copy.deepcopy(model.state_dict())
    optimizer = SGD(model.parameters(), lr=1.0)
    attach_remedy("sparseopt", optimizer, model, lambda: mask, {})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = unit_factors(mask[name], 2) if name == "0.weight" else torch.ones_like(parameter)
        torch.testing.assert_close(before[name] - parameter.detach(), expected)


def test_options_are_checked():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = SGD([weight], lr=0.1)
    with refused(r"alpha is -1; allowed: a number in \[0, inf\)"):
        attach_remedy("ham", optimizer, holder(weight), dict, {"alpha": -1})
    with refused("every must be a positive integer, got 0"):
        attach_remedy("sign-in", optimizer, holder(weight), dict, {"every": 0})
    with refused("unknown option of remedy 'sparseopt' 'alpha'"):
        check_recipe("remedy", "sparseopt", {"alpha": 1})
    with refused("unknown remedy 'hamm'. Did you mean 'ham'"):
        check_recipe("remedy", "hamm", {})
