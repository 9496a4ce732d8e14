"""A wrong rule shows: each rule that a few small networks use is spoiled in turn, and their derivative must tell."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
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
Rule = Callable[[Any, Any], Any]


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
        self.slope, self.head = nn.Parameter(torch.full((2,), 0.3)), nn.LazyLinear(2)
        for entry in (self.norm.running_mean, self.norm.running_var, self.layer_norm.weight, self.norm.weight):
            entry.data.uniform_(0.5, 2.0)
        self.double().eval()(X)

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


def _spoiled(coefficient: Any) -> Any:
    if isinstance(coefficient, Gate):
        return Gate(torch.ones_like(coefficient.open))
    if isinstance(coefficient, ArgMax):
        return ArgMax(torch.zeros_like(coefficient.indices))
    if isinstance(coefficient, Slope):
        return replace(coefficient, forward=coefficient.forward * 1.5)
    assert isinstance(coefficient, Factors)
    return Factors((coefficient.operands[0] * 1.5, *coefficient.operands[1:]))


def larger(rule: Rule, reading: Any, node: Any) -> Any:
    value = rule(reading, node)
    return value * 1.5 if isinstance(value, Tensor) else [entry * 1.5 for entry in value]


def wrongly_recorded(rule: Rule, reading: Any, node: Any) -> Any:
    result = rule(reading, node)
    if node in reading.tape:  # not where only one factor depends on the input
        reading.tape[node] = _spoiled(reading.tape[node])
    return result


def test_the_rules_as_they_are() -> None:
    assert [number for number in range(len(FORMS)) if not right(number)] == []


@pytest.mark.parametrize(
    ("table", "ops", "spoiled"),
    [
        (LINEAR, f"{LAYERS} {RECORDED} {FIXED}", larger),
        (RECORD, f"{LAYERS} {RECORDED}", larger),
        (RECORD, RECORDED, wrongly_recorded),
    ],
    ids=["linear rule", "value", "coefficient"],
)
def test_a_wrong_rule_shows(
    table: dict[str, Rule], ops: str, spoiled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for op in ops.split():
        with monkeypatch.context() as patch:
            patch.setitem(table, op, partial(spoiled, table[op]))
            assert not all(map(right, _users()[op])), op
