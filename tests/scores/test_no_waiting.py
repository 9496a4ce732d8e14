"""In the passes of a round the host never waits for the device and sends it nothing: they can be queued, or captured.

Tensors on the device ``meta`` have shapes but no values, so whatever reads a value in Python raises; and an operation
that takes tensors of two devices is seen.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pathex
from pathex import scores
from pathex.errors import PathexWarning
from pathex.masks import prunable_weights
from pathex.scores import Problem, px, synflow, synflow_l2

NETWORKS = ["resnet20", "timm:test_efficientnet", "timm:test_convnext", "timm:test_vit"]
LARGE = [
    "vgg11_bn",
    "torchvision:convnext_tiny",
    "torchvision:googlenet",
    "torchvision:mobilenet_v3_small",
    "timm:darknet53",
    "timm:vit_tiny_patch16_224",
]
MODULES = {"px": px, "synflow": synflow, "synflow-l2": synflow_l2}


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        found = {tensor.device.type for tensor in tree_leaves((args, kwargs, result)) if isinstance(tensor, Tensor)}
        assert len(found) <= 1, f"{func} on {found}"
        return result


def without_values(value):
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, Mapping):
        return {name: without_values(entry) for name, entry in value.items()}
    return tuple(map(without_values, value)) if isinstance(value, tuple) else value


def summed(method, problem, **options):
    """What a method sums, without the look at it that decides about the precision."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", PathexWarning)
        patch.setattr(MODULES[method], "safely", lambda reader, summed: summed(reader))
        return scores.find(method).having(options).score(problem)


def of_second_round(model, x, method, **options):
    """The passes of a second round, on tensors without values."""
    mask = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    # All images at once: how many fit is a question to the host.
    problem = Problem(model, prunable_weights(model), [(x, None)], mask, memory=2**40)
    summed(method, problem, **options)
    model.to("meta")
    memo = {name: without_values(entry) for name, entry in problem.memo.items()}
    held = {"prunable": prunable_weights(model), "batches": [(x.to("meta"), None)], "mask": without_values(mask)}
    with OneDevice():
        return summed(method, replace(problem, round=2, memo=memo, **held), **options)


@pytest.mark.parametrize("method", MODULES)
@pytest.mark.parametrize("name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_no_pass_reads_a_value(name, method):
    side = 64 if name == "torchvision:googlenet" else 32
    options = {"img_size": side} if "vit" in name else {}
    model = pathex.models.create(name, num_classes=3, **options).eval()
    how = {} if method == "px" else {"per_sample": "one"}
    total, found = of_second_round(model, torch.randn(3, 3, side, side), method, **how)
    assert total.shape == ()
    assert {weight: score.device.type for weight, score in found.items()} == dict.fromkeys(
        prunable_weights(model), "meta"
    )


@pytest.mark.parametrize("smooth", ["secant", "tangent", "mixed"])
@pytest.mark.parametrize("calibration", ["batch", "running"])
def test_no_option_of_px_reads_a_value(calibration, smooth):
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.PReLU(4), nn.ReLU6(), nn.GELU()
    head = nn.MaxPool2d(2), nn.RReLU(), nn.Sigmoid(), nn.Hardswish(), nn.Hardsigmoid(), nn.Flatten(), nn.LazyLinear(3)
    model = nn.Sequential(*layers, *head).eval()
    x = torch.randn(3, 3, 8, 8)
    model(x)
    of_second_round(model, x, "px", calibration=calibration, smooth=smooth)


def reading(inputs, out):
    assert math.isfinite(out.detach().sum())
    return out


def sending(inputs, out):
    return out * torch.ones(3)


@pytest.mark.parametrize("wrong", [reading, sending])
def test_a_pass_that_waits_or_sends_is_seen(monkeypatch, wrong):
    run = px.run_linear
    monkeypatch.setattr(px, "run_linear", lambda linear, inputs: wrong(inputs, run(linear, inputs)))
    with pytest.raises((RuntimeError, AssertionError), match="meta"):
        of_second_round(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(2, 3, 2, 2), "px")
