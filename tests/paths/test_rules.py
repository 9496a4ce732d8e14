"""The rules of operators: readings against the list of all paths, and a rule that is wrong shows."""

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor

import programs
from brute_force.cases import CASES, Wired, build, masked, random_mask
from brute_force.expand import Graph
from brute_force.paths import flow
from pathex.errors import UnknownName
from pathex.paths import count_paths, record, replay, replay_open
from pathex.paths.linear import LINEAR
from pathex.paths.recording import RECORD, ArgMax, Factors, Gate, Slope
from programs import GROUPS, beside, derivative
from refusals import refused


@cache
def network(case, pruned, calibration):
    """Model, images, its masked parameters, the parameters of its ones-network, its recording and its scalars."""
    model, x = build(case, 26)
    mask = random_mask(model, 26) if pruned else {}
    theta = masked(model, mask)
    ones = {n: torch.ones_like(entry) for n, entry in theta.items()} | {n: keep.double() for n, keep in mask.items()}
    recording = record(model, x, tensors=theta, calibration=calibration)
    return model, x, theta, ones, recording, Graph(model, x, theta, calibration=calibration)


@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("calibration", ["batch", "running"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reading", ["record", "plain", "squared", "absolute", "ones", "open"])
def test_readings_are_sums_over_paths(reading, case, calibration, pruned):
    model, x, theta, ones, recording, graph = network(case, pruned, calibration)
    tensors, inputs = ones if reading == "ones" else theta, x if reading == "plain" else x**2
    if reading == "record":
        found, expected = recording.output, graph.output()
    elif reading == "open":
        inputs = torch.ones_like(x[:1])
        found = replay_open(model, inputs, statistics=recording.statistics, tensors=theta)
        expected = flow(graph, reading, inputs, theta)
    else:
        found = replay(model, inputs, recording, tensors=tensors, coefficients=reading)
        expected = flow(graph, reading, inputs, tensors)
    # The signs of plain paths cancel, so their sum may be small beside its terms.
    atol = {"record": 1e-12, "plain": 1e-11}.get(reading, 0.0)
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-10, atol=atol, check_dtype=False)


X, Z = programs.images(2), programs.images(2, seed=1)
RECORDED = (
    "adaptive_max_pool2d amax clamp einsum gelu group_norm hardtanh layer_norm leaky_relu matmul max_pool2d mul prelu "
    "relu relu6 sigmoid softmax square tanh conv2d conv_transpose2d linear"
)
FIXED = (
    "adaptive_avg_pool2d add avg_pool2d batch_norm cat div flatten mT masked_fill mean neg pad permute rsub sub sum "
    "upsample_bilinear2d upsample_nearest2d where"
)


@cache
def operators(group):
    model = beside(GROUPS[group])
    recording = recorded(model)
    used = {node.op for node in recording.graph.path if node in recording.graph.carried}
    return model, recording, used, model(X.clone()).detach(), derivative(model, X, Z)


def recorded(model):
    return record(model, X, calibration="running", smooth="tangent")


def right(table, groups):
    """Whether the readings that use a table of rules give the output and the derivative."""
    for group in groups:
        model, recording, _, output, truth = operators(group)
        recording = recorded(model) if table is RECORD else recording
        found = replay(model, Z, recording, coefficients="plain").flatten(1)
        pairs = (recording.output, output), (found, truth)
        if not all(torch.allclose(*pair, rtol=1e-9, atol=1e-10) for pair in pairs):
            return False
    return True


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
    groups = {group: operators(group)[2] for group in range(len(GROUPS))}
    assert right(table, groups)
    for op in ops.split():
        if change is wrongly_recorded and op in ("conv2d", "conv_transpose2d", "linear"):
            continue  # nothing of them is recorded
        with monkeypatch.context() as patch:
            patch.setitem(table, op, partial(change, table[op]))
            assert not right(table, [group for group, used in groups.items() if op in used]), op


WORDS = {
    "calibration": lambda net, x: record(net, x, calibration="foo"),
    "smooth": lambda net, x: record(net, x, smooth="foo"),
    "coefficients": lambda net, x: replay(net, x, record(net, x), coefficients="foo"),
    "statistics": lambda net, x: replay_open(net, x, statistics="foo"),
    "pools": lambda net, x: replay_open(net, x, statistics="running", pools="foo"),
    "per_sample": lambda net, x: count_paths(net, x, {}, per_sample="foo"),
}


@pytest.mark.parametrize("word", WORDS)
def test_unknown_words(word):
    with refused(f"unknown {word} 'foo'. Known: ", UnknownName):
        WORDS[word](torch.nn.Linear(3, 2), torch.randn(2, 3))


def test_a_replay_of_another_number_of_images():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
    for number in (1, 5):
        with refused("images of another shape or number"):
            replay(net, torch.randn(number, 3), record(net, torch.randn(2, 3)))
    turned, x = Wired(lambda net, x: net.layer(x).relu().mT, layer=net[0]), torch.rand(5, 3)
    assert replay(turned, x, record(turned, x)).shape == (2, 5)
