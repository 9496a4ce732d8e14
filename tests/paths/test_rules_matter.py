"""A wrong rule shows: each rule that a few small networks use is spoiled in turn, and their derivative must tell."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.paths import record, replay
from pathex.paths.linear import LINEAR
from pathex.paths.recording import RECORD, ArgMax, Factors, Gate, Slope
from paths.oracle import images, linear_map

Form = Callable[[nn.Module, Tensor], Tensor]


def _normalised(net: nn.Module, y: Tensor) -> Tensor:
    return net.layer_norm(y.permute(0, 2, 3, 1)) + F.group_norm(y, 1).permute(0, 2, 3, 1)


def _scaled(net: nn.Module, y: Tensor) -> Tensor:
    """What `_normalised` is to paths."""
    moved = y.permute(0, 2, 3, 1)
    units, group = (t.var(dims, correction=0, keepdim=True).detach() for t, dims in ((moved, -1), (y, (1, 2, 3))))
    return moved * (units + 1e-5).rsqrt() * net.layer_norm.weight + (y * (group + 1e-5).rsqrt()).permute(0, 2, 3, 1)


FORMS: list[Form] = [
    lambda net, y: F.leaky_relu(F.relu(y) - 0.2, 0.3),
    lambda net, y: F.hardtanh(y, -0.5, 0.5) + y.clamp(-0.4, 0.6) + F.relu6(4 * y) / 2,
    lambda net, y: torch.cat([F.gelu(y), y.tanh()], 1),
    lambda net, y: F.max_pool2d(y, 2) - F.avg_pool2d(y, 2),
    lambda net, y: F.adaptive_avg_pool2d(y, 2) + F.adaptive_max_pool2d(y, 2),
    lambda net, y: F.interpolate(y, scale_factor=2, mode="bilinear") + F.interpolate(y, scale_factor=2),
    lambda net, y: y * y.mean((2, 3), keepdim=True).sigmoid(),
    lambda net, y: (y.flatten(2) @ y.flatten(2).mT).softmax(-1) @ y.flatten(2),
    lambda net, y: torch.einsum("nchw,nkwh->nck", y, y) / 3,
    lambda net, y: net.norm(F.prelu(net.up(y), net.slope)),
    lambda net, y: torch.where(y > 0.1, y, -y).amax((2, 3)) + (2 - y).square().sum((2, 3)),
    lambda net, y: F.pad(y, (1, 0, 0, 1)).masked_fill(torch.eye(5) > 0.5, 0.0),
    _normalised,
]


class Net(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.conv, self.up = nn.Conv2d(2, 2, 1), nn.ConvTranspose2d(2, 2, 2)
        self.norm, self.layer_norm = nn.BatchNorm2d(2), nn.LayerNorm(2)
        self.slope = nn.Parameter(torch.full((2,), 0.3))
        with torch.no_grad():
            size = form(self.eval(), self.conv(torch.ones(1, 2, 4, 4))).numel()
        self.head = nn.Linear(size, 2)
        for entry in (self.norm.running_mean, self.norm.running_var, self.layer_norm.weight, self.norm.weight):
            entry.data.uniform_(0.5, 2.0)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.form(self, self.conv(x)).flatten(1))


X, Z = 2 * images(2, 2, 4, 4), images(2, 2, 4, 4, seed=1)
LAYERS = "conv2d conv_transpose2d linear"
RECORDED = (
    "adaptive_max_pool2d amax clamp einsum gelu group_norm hardtanh layer_norm leaky_relu matmul max_pool2d mul prelu "
    "relu relu6 sigmoid softmax square tanh"
)
FIXED = (
    "adaptive_avg_pool2d add avg_pool2d batch_norm cat div flatten getitem mT masked_fill mean neg pad permute rsub "
    "sub sum upsample_bilinear2d upsample_nearest2d where"
)


@cache
def _net(number: int) -> Net:
    return Net(FORMS[number])


@cache
def _truth(number: int) -> tuple[Tensor, Tensor]:
    """Output, and derivative along ``Z``."""
    net = _net(number)
    output = net(X).detach()
    net.form, form = _scaled if net.form is _normalised else net.form, net.form
    derivative = (linear_map(net, X) @ Z.flatten()).view_as(output)
    net.form = form
    return output, derivative


def right(number: int) -> bool:
    """Whether the readings of a network give its output and its derivative."""
    recording = record(_net(number), X, calibration="running", smooth="tangent")
    found = recording.output, replay(_net(number), Z, recording, coefficients="plain")
    return all(torch.allclose(*pair, rtol=1e-9, atol=1e-11) for pair in zip(found, _truth(number), strict=True))


@cache
def _users() -> dict[str, list[int]]:
    """By operator the networks in which paths pass it."""
    found: dict[str, list[int]] = {}
    for number in range(len(FORMS)):
        graph = record(_net(number), X, calibration="running").graph
        for op in {node.op for node in graph.path if node in graph.carried}:
            found.setdefault(op, []).append(number)
    return found


def _shows(op: str) -> bool:
    return not all(map(right, _users()[op]))


def _larger(value: Any) -> Any:
    return value * 1.5 if isinstance(value, Tensor) else [_larger(entry) for entry in value]


def _spoiled(coefficient: Any) -> Any:
    if isinstance(coefficient, Gate):
        return Gate(torch.ones_like(coefficient.open))
    if isinstance(coefficient, ArgMax):
        return ArgMax(torch.zeros_like(coefficient.indices))
    if isinstance(coefficient, Slope):
        return replace(coefficient, forward=coefficient.forward * 1.5)
    assert isinstance(coefficient, Factors)
    return Factors((coefficient.operands[0] * 1.5, *coefficient.operands[1:]))


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_the_rules_as_they_are(number: int) -> None:
    assert right(number)


@pytest.mark.parametrize("op", f"{LAYERS} {RECORDED} {FIXED}".split())
def test_a_wrong_linear_rule_shows(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = LINEAR[op]
    monkeypatch.setitem(LINEAR, op, lambda reading, node: _larger(rule(reading, node)))
    assert _shows(op)


@pytest.mark.parametrize("op", f"{LAYERS} {RECORDED}".split())
def test_a_wrong_value_shows(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RECORD[op]
    monkeypatch.setitem(RECORD, op, lambda reading, node: _larger(rule(reading, node)))
    assert _shows(op)


@pytest.mark.parametrize("op", RECORDED.split())
def test_a_wrong_coefficient_shows(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RECORD[op]

    def spoiled(reading: Any, node: Any) -> Any:
        result = rule(reading, node)
        if node in reading.tape:  # not where only one factor depends on the input
            reading.tape[node] = _spoiled(reading.tape[node])
        return result

    monkeypatch.setitem(RECORD, op, spoiled)
    assert _shows(op)
