"""Scoring and pruning leave everything as it was: the model, the data, random generators and torch itself."""

import copy

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import Wired
from pathex.errors import PathexWarning, UnsupportedOperation
from snapshots import assert_same, unchanged
from variants import RUN_THE_NETWORK, VARIANTS


def network():
    """With mixed flags, some gradients and a frozen layer; and two batches."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(36, 3)).train()
    x, y = torch.randn(8, 1, 5, 5), torch.arange(8) % 3
    model(x).sum().backward()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[5].weight.grad = None
    return model, [(x[:4], y[:4]), (x[4:], y[4:])]


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_comes_back_as_it_was(variant):
    method, options = VARIANTS[variant]
    model, batches = network()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    data = copy.deepcopy(batches)
    with unchanged(model):
        scores = pathex.score(model, method, batches, **options)
    assert all(not score.requires_grad and score.isfinite().all() for score in scores.values())
    with unchanged(model):
        first, again = (pathex.prune(model, method, sparsity=0.5, data=batches, rounds=2, **options) for _ in range(2))
    assert_same(batches, data)
    assert first.mask.kept == 72 and first.mask == again.mask
    assert calls or method not in RUN_THE_NETWORK


@pytest.mark.parametrize(
    ("method", "calls"),  # methods that read paths run the network once, when it is traced
    [*((name, 1) for name in ("px", "px-literal", "px-cvpr24", "synflow")), *(("ntk-sap", n) for n in (1, 2, 3))],
)
def test_after_an_error_in_the_middle_too(method, calls):
    model, batches = network()
    left = list(range(calls - 1))

    def fail(module, args):
        if not left:
            raise RuntimeError("in the middle")
        left.pop()

    model[5].register_forward_pre_hook(fail)
    with unchanged(model), pytest.raises((RuntimeError, UnsupportedOperation), match="in the middle"):
        pathex.prune(model, method, sparsity=0.5, data=batches, rounds=5)


def test_after_a_refused_operation_too():
    strange = Wired(lambda net, x: torch.fft.fft(x).real)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), strange, nn.Linear(4, 2)), torch.randn(4, 3)
    with unchanged(model), pytest.raises(UnsupportedOperation, match=r"fft.*'2' \(Wired\)"):
        pathex.score(model, "px", x)
    with pytest.warns(PathexWarning, match="not counted"):
        assert pathex.prune(model, "magnitude", sparsity=0.5, data=x).report.disconnected is None


@pytest.mark.parametrize("method", ["px", "synflow-l2", "magnitude"])
def test_shared_modules_and_tied_weights(method):
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    twice = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 2))
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    tied[0], tied[4] = copy.deepcopy(shared), twice[4]
    tied[2].weight, tied[2].bias = tied[0].weight, tied[0].bias
    x = torch.randn(5, 4)
    with unchanged(tied):
        first, second = pathex.score(twice, method, x), pathex.score(tied, method, x)
        assert pathex.prune(tied, method, sparsity=0.5, data=x, rounds=2).mask.kept == 12
    assert list(first) == list(second) == ["0.weight", "4.weight"]
    assert all(torch.allclose(first[name], second[name]) for name in first)
    assert tied[2].weight is tied[0].weight
