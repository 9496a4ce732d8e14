"""A wrong rule shows: each rule that a table of operators uses is spoiled in turn, and the derivative must tell."""

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from pathex.paths import record, replay
from pathex.paths.linear import LINEAR
from pathex.paths.recording import RECORD, ArgMax, Factors, Gate, Slope
from programs import LINEARISED, beside, derivative, images

X, Z = images(2), images(2, seed=1)
RECORDED = (
    "adaptive_max_pool2d amax clamp einsum gelu group_norm hardtanh layer_norm leaky_relu matmul max_pool2d mul prelu "
    "relu relu6 sigmoid softmax square tanh conv2d conv_transpose2d linear"
)
FIXED = (
    "adaptive_avg_pool2d add avg_pool2d batch_norm cat div flatten mT masked_fill mean neg pad permute rsub sub sum "
    "upsample_bilinear2d upsample_nearest2d where"
)


@cache
def network():
    model = beside(LINEARISED)
    return model, recorded(model), model(X.clone()).detach(), derivative(model, X, Z)


def recorded(model):
    return record(model, X, calibration="running", smooth="tangent")


def right(table):
    """Whether the readings that use a table of rules give the output and the derivative."""
    model, recording, output, truth = network()
    recording = recorded(model) if table is RECORD else recording
    found = replay(model, Z, recording, coefficients="plain").flatten(1)
    return all(torch.allclose(*pair, rtol=1e-9, atol=1e-10) for pair in ((recording.output, output), (found, truth)))


def spoiled(coefficient):
    if isinstance(coefficient, Gate):
        return Gate(torch.ones_like(coefficient.open))
    if isinstance(coefficient, ArgMax):
        return ArgMax(torch.zeros_like(coefficient.indices))
    if isinstance(coefficient, Slope):
        return replace(coefficient, forward=coefficient.forward * 1.5)
    assert isinstance(coefficient, Factors)
    return Factors((coefficient.operands[0] * 1.5, *coefficient.operands[1:]))


def larger(rule, reading, node):
    value = rule(reading, node)
    return value * 1.5 if isinstance(value, Tensor) else [entry * 1.5 for entry in value]


def wrongly_recorded(rule, reading, node):
    result = rule(reading, node)
    if node in reading.tape:  # not where only one factor depends on the input
        reading.tape[node] = spoiled(reading.tape[node])
    return result


@pytest.mark.parametrize(
    ("table", "ops", "change"),
    [(LINEAR, f"{RECORDED} {FIXED}", larger), (RECORD, RECORDED, larger), (RECORD, RECORDED, wrongly_recorded)],
    ids=["linear rule", "value", "coefficient"],
)
def test_a_wrong_rule_shows(table, ops, change, monkeypatch):
    assert right(table)
    graph = network()[1].graph
    assert {*ops.split()} <= {node.op for node in graph.path if node in graph.carried}
    for op in ops.split():
        if change is wrongly_recorded and op in ("conv2d", "conv_transpose2d", "linear"):
            continue  # nothing of them is recorded
        with monkeypatch.context() as patch:
            patch.setitem(table, op, partial(change, table[op]))
            assert not right(table), op
