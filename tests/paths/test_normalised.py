"""Convolutions that wait for their BatchNorm: the same linear map, and only where nothing else uses their result."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brute_force.cases import Wired
from pathex.graph import trace
from pathex.paths import Linear, Weights, lowered, record, replay, run_linear
from pathex.paths.rules import layers


def block(form):
    """Two convolutions, one of them used twice in some forms."""
    convs = {"first": nn.Conv2d(3, 6, 3, padding=1, bias=False), "second": nn.Conv2d(6, 6, 3, padding=1, groups=2)}
    norms = {"bn1": nn.BatchNorm2d(6), "bn2": nn.BatchNorm2d(6, affine=False)}
    nn.init.uniform_(norms["bn1"].weight, -2, 2)
    return Wired(lambda net, x: net.head(form(net, x).mean((2, 3))), **convs, **norms, head=nn.Linear(6, 4)).double()


def chain(net, x):
    return F.relu(net.bn2(net.second(F.relu(net.bn1(net.first(x))))))


def result_also_added(net, x):
    y = net.first(x)
    return F.relu(net.bn2(net.second(F.relu(net.bn1(y) + y))))


def result_changed_in_place(net, x):
    y = net.first(x)
    y.mul_(2)
    return F.relu(net.bn2(net.second(F.relu_(net.bn1(y)))))


def normalised_twice(net, x):
    y = net.first(x)
    return F.relu(net.bn2(net.second(net.bn1(y))) + net.bn2(y))


def weight_used_twice(net, x):
    y = F.relu(net.bn1(net.first(x)))
    return F.relu(net.bn2(net.second(y))) + F.relu(net.bn1(net.second(F.max_pool2d(y, 2)))).mean((2, 3), keepdim=True)


def weight_normalised_once(net, x):
    y = F.relu(net.bn1(net.first(x)))
    return F.relu(net.second(net.bn2(net.second(y))))


def asks_for_the_form(net, x):
    y = net.first(x)
    assert y.shape[1] == 6 and y.dim() == 4 and y.is_floating_point()
    return F.relu(net.bn2(net.second(F.relu(net.bn1(y)))))


FORMS = {
    chain: {"first.weight", "second.weight"},
    result_also_added: {"second.weight"},
    result_changed_in_place: {"second.weight"},
    normalised_twice: {"second.weight"},
    weight_used_twice: {"first.weight", "second.weight"},
    weight_normalised_once: {"first.weight", "second.weight"},
    asks_for_the_form: {"first.weight", "second.weight"},
}


@pytest.mark.parametrize("coefficients", ["plain", "squared", "ones", "absolute"])
@pytest.mark.parametrize(("form", "fused"), FORMS.items(), ids=lambda value: getattr(value, "__name__", None))
def test_the_map_and_its_scores_are_the_same(form, fused, coefficients, monkeypatch):
    torch.manual_seed(0)
    net, x = block(form), torch.randn(5, 3, 6, 6, dtype=torch.float64)
    recording = record(net, x)
    graph = lowered(trace(net, x))
    found = []
    for fuses in (True, False):
        if not fuses:
            monkeypatch.setattr("pathex.paths.rules.layers.norm_of", lambda reading, node: None)
        weights = Weights(net, torch.float64, scored=["first.weight", "second.weight", "head.weight"])
        reading = Linear(graph, weights, recording.tape, recording.statistics, coefficients)
        convolutions = [node for node in graph.path if node.op == "conv2d"]
        if fuses:
            alone = [node["weight"].target for node in convolutions if layers.norm_of(reading, node) is not None]
            assert set(alone) == fused
        out = run_linear(reading, [x])
        found.append((out.detach(), reading.scores(out.square().sum())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-11)


def test_a_convolution_that_is_the_output_is_not_fused():
    layers = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4)}
    net = Wired(lambda net, x: ((y := net.conv(x)), net.bn(y)), **layers)
    net, x = net.double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    recording = record(net, x)
    torch.testing.assert_close(replay(net, x, recording), F.conv2d(x, net.conv.weight.square()), rtol=1e-11, atol=1e-12)
