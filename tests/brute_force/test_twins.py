"""The twins themselves, against torch's own forward pass and derivatives."""

import copy

import pytest
import torch
from torch import nn

from brute_force import scores
from brute_force.cases import CASES, build, masked, prunable
from brute_force.expand import Graph
from brute_force.paths import flow, saliency


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("calibration", ["running", "batch"])
def test_nodes_hold_the_forward_pass(case, calibration):
    model, x = build(case, seed=1)
    expected = copy.deepcopy(model).train(calibration == "batch")(x.clone())
    assert_same(Graph(model, x, calibration=calibration).output(), expected.flatten(1))


@pytest.mark.parametrize("case", CASES)
def test_plain_paths_are_the_derivative_along_the_image(case):
    model, x = build(case, seed=2)
    network = copy.deepcopy(model).eval()
    jacobian = torch.func.jacrev(lambda images: network(images.clone()).flatten(1).sum(0))(x)
    assert_same(flow(Graph(model, x), "plain", x, masked(model, None)), (jacobian * x).flatten(2).sum(2).T)


@pytest.mark.parametrize("case", [case for case in CASES if case not in {"relu6", "hardtanh", "depthwise"}])
def test_plain_saliency_is_weight_times_gradient_when_nothing_shifts(case):
    model, x = build(case, seed=3)
    model.eval()
    for name, entry in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith((".bias", "running_mean")):
            entry.data.zero_()
    model(x.clone()).sum().backward()
    actual = saliency(Graph(model, x), "plain", x, masked(model, None))
    assert sorted(actual) == sorted(prunable(model))
    for name, score in actual.items():
        entry = model.get_parameter(name)
        assert_same(score, entry * entry.grad)


def test_squared_readings_of_one_path_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.LeakyReLU(0.5), nn.AvgPool2d(2))
    model.double().get_parameter("0.weight").data.fill_(3.0)
    model.get_parameter("1.weight").data.fill_(2.0)
    model.get_buffer("1.running_var").fill_(4.0 - 1e-5)
    x = torch.full((1, 1, 2, 2), -1.0, dtype=torch.float64)
    graph, theta, ones = Graph(model, x), masked(model, None), {"0.weight": torch.full((1, 1, 1, 1), 1.0)}
    # Four paths, each with weight 3, coefficient 2 / sqrt(4), slope 0.5 and share 1/4.
    expected = {"plain": 4 * 3 * 0.5 / 4, "squared": 4 * 9 * 0.25 / 16, "open": 4 * 9 / 16}
    for reading, value in expected.items():
        assert flow(graph, reading, x**2, theta).item() == pytest.approx(value, rel=1e-12)
    assert flow(graph, "ones", x**2, ones).item() == pytest.approx(4 * 0.25 / 4, rel=1e-12)


def test_px_cvpr24_of_a_linear_network_by_hand():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    model.load_state_dict({"0.weight": torch.tensor([[2.0]]), "2.weight": torch.tensor([[-3.0]])})
    batches = [torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.ones(1, 1).double()]
    # Two images pass the gate: z1 = -6, z2 = 4 * 9; dR/d(a^2) = -6 * 9 and dR/d(b^2) = -6 * 4, each twice.
    actual = scores.px_cvpr24(model, batches)
    assert actual["0.weight"].item() == pytest.approx(2 * 54 * 2**5)
    assert actual["2.weight"].item() == pytest.approx(2 * 24 * 3**5)
