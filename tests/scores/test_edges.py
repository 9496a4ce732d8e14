"""Weights of unusual size, tensors without entries, and networks whose forward pass draws."""

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import Wired, perceptron
from pathex.errors import InvalidInput, PathexError, PathexWarning, UnsupportedOperation
from variants import SCORERS

X, Y = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
RUN_THE_NETWORK = [name for name in SCORERS if pathex.methods(name).runs_network]


def scaled(factor, dtype=torch.float32):
    torch.manual_seed(0)
    model = perceptron(5, 8, 8, 3, bias=False).to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(factor)
    return model


@pytest.mark.filterwarnings("ignore:scores leave float32", "ignore:all scores are zero")
@pytest.mark.parametrize("factor", [1e-16, 1e-10, 1e-5, 1e10, 1e18])
@pytest.mark.parametrize("method", [name for name in RUN_THE_NETWORK if name not in ("phew", "node-path")])
def test_float32_keeps_what_float64_keeps_whatever_the_size_of_weights(method, factor):
    how = {"method": method, "sparsity": 0.5, "rounds": 2 if factor < 1 else 1}
    narrow = pathex.prune(scaled(factor), data=(X, Y), **how)
    wide = pathex.prune(scaled(factor).double(), data=(X.double(), Y), **how)
    assert narrow.mask.jaccard(wide.mask) > 0.94


def test_it_is_said_once_and_an_error_where_doubts_are():
    with pytest.warns(PathexWarning) as said:
        pathex.prune(scaled(1e-16), "snip", sparsity=0.5, data=(X, Y), rounds=3)
    told = [str(warning.message) for warning in said]
    assert len(told) == 1 and told[0].startswith("scores leave float32 and are computed in float64: 0.weight, 2.weight")
    with pytest.raises(InvalidInput, match="leave float32"):
        pathex.score(scaled(1e-16), "snip", (X, Y), strict=True)
    with pytest.raises(PathexError, match=r"scores of 0\.weight, 2\.weight.* overflow float64"):
        pathex.score(scaled(1e60, torch.float64), "ntk-diagonal", X.double())


def spoiled(name, value=float("nan")):
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model.state_dict()[name].view(-1)[1] = value
    return model


@pytest.mark.parametrize("method", [*pathex.scores.names(), lambda model, batches, mask: mask])
def test_tensors_that_are_not_finite_are_refused_by_name(method):
    for name, value in (("0.weight", float("-inf")), ("0.weight", float("nan")), ("3.bias", float("inf"))):
        with pytest.raises(InvalidInput, match=f"'{name}' holds NaN or infinite values"):
            pathex.score(spoiled(name, value), method, (X, Y))
    with pytest.raises(InvalidInput, match=r"'1\.running_var' holds NaN"):
        pathex.score(spoiled("1.running_var"), method, (X, Y))


def test_where_a_start_mask_removes_them_they_do_not_matter():
    model = spoiled("0.weight")
    start = pathex.Mask({name: torch.isfinite(weight) for name, weight in pathex.masks.prunable_weights(model).items()})
    for method in ("px", "snip", "magnitude"):
        assert pathex.prune(model, method, sparsity=0.5, data=(X, Y), mask=start, rounds=1).mask.kept == 16


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("method", pathex.scores.names())
def test_tensors_without_entries_are_no_weights(method):
    empty = nn.Linear(0, 4)
    model = Wired(lambda net, x: net.fc(x) + net.empty(x[:, :0]), fc=nn.Linear(5, 4), empty=empty)
    mask = pathex.prune(model, method, sparsity=0.5, data=(X, Y), rounds=1).mask
    assert list(mask) == ["fc.weight"] and mask.kept == 10


def noisy():
    torch.manual_seed(0)
    body, fc = nn.Linear(5, 8), nn.Linear(8, 3)
    return Wired(lambda net, x: net.fc((net.body(x) * (1 + torch.rand_like(x[:, :1]))).relu()), body=body, fc=fc)


@pytest.mark.parametrize("method", RUN_THE_NETWORK)
def test_draws_of_a_forward_pass_come_from_the_seed_or_are_refused(method):
    state = torch.get_rng_state()
    if method.startswith(("px", "synflow")):
        with pytest.raises(UnsupportedOperation, match="draws random numbers"):
            pathex.score(noisy(), method, (X, Y))
        return
    first = pathex.prune(noisy(), method, sparsity=0.5, data=(X, Y), rounds=2).mask
    torch.rand(3)
    assert pathex.prune(noisy(), method, sparsity=0.5, data=(X, Y), rounds=2).mask == first
    torch.set_rng_state(state)
    if method != "node-path":  # which only counts
        other = pathex.score(noisy(), method, (X, Y), seed=5)["fc.weight"]
        assert not torch.equal(other, pathex.score(noisy(), method, (X, Y))["fc.weight"])
