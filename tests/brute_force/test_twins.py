"""The twins themselves, against torch's own forward pass and derivatives."""

import copy

import pytest
import torch
from torch import Tensor, nn

from brute_force import scores
from brute_force.cases import CASES, Branches, build, draw, masked, prunable, random_mask
from brute_force.expand import Graph
from brute_force.ntk import FIXED_GATES, mean_trace_over_signs, trace
from brute_force.paths import enumerate_paths, flow, saliency


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-11, atol=1e-11)


def without_shifts(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model).eval()
    for name, entry in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith((".bias", "running_mean")):
            entry.data.zero_()
    return model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("calibration", ["running", "batch"])
def test_nodes_hold_the_forward_pass(case: str, calibration: str) -> None:
    model, x = build(case, seed=1)
    expected = copy.deepcopy(model).train(calibration == "batch")(x.clone())
    graph = Graph(model, x, calibration=calibration)
    assert_same(graph.output(), expected.flatten(1))


@pytest.mark.parametrize("case", CASES)
def test_plain_paths_are_the_derivative_along_the_image(case: str) -> None:
    model, x = build(case, seed=2)
    network = copy.deepcopy(model).eval()
    jacobian = torch.func.jacrev(lambda images: network(images.clone()).flatten(1).sum(0))(x)
    expected = (jacobian * x).flatten(2).sum(2).T
    actual = flow(Graph(model, x), "plain", x, masked(model, None))
    assert_same(actual, expected)


@pytest.mark.parametrize("case", [case for case in CASES if case not in {"relu6", "hardtanh", "depthwise"}])
def test_plain_saliency_is_weight_times_gradient_when_nothing_shifts(case: str) -> None:
    model, x = build(case, seed=3)
    model = without_shifts(model)
    model(x.clone()).sum().backward()
    actual = saliency(Graph(model, x), "plain", x, masked(model, None))
    assert sorted(actual) == sorted(prunable(model))
    for name, score in actual.items():
        entry = model.get_parameter(name)
        assert entry.grad is not None
        assert_same(score, entry * entry.grad)


def test_the_number_of_paths_is_the_product_of_the_widths() -> None:
    model, x = build("mlp", seed=0)
    assert len(list(enumerate_paths(Graph(model, x)))) == 3 * 4 * 3 * 2


def test_squared_readings_of_one_path_by_hand() -> None:
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


@pytest.mark.parametrize("case", ["mlp", "max-pool", "vector-norm"])
def test_px_is_conserved_by_the_layers_of_a_chain(case: str) -> None:
    model, x = build(case, seed=4)
    total = flow(Graph(model, x, calibration="batch"), "squared", x**2, masked(model, None)).sum()
    for score in scores.px(model, x).values():
        torch.testing.assert_close(score.sum(), total)


@pytest.mark.parametrize("case", ["mlp-without-bias", "max-pool"])
def test_synflow_with_and_without_shifts_agree_where_there_are_none(case: str) -> None:
    model, x = build(case, seed=5)
    model, mask = without_shifts(model), random_mask(model, seed=5)
    released = scores.synflow_released(model, x, mask)
    for name, score in scores.synflow(model, x, mask).items():
        torch.testing.assert_close(score, released[name])


def test_px_cvpr24_of_a_linear_network_by_hand() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    a, b = torch.tensor([[2.0]]), torch.tensor([[-3.0]])
    model.load_state_dict({"0.weight": a, "2.weight": b})
    batches: list[Tensor] = [torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.ones(1, 1).double()]
    # Two images pass the gate: z1 = -6, z2 = 4 * 9; dR/d(a^2) = -6 * 9 and dR/d(b^2) = -6 * 4, each twice.
    actual = scores.px_cvpr24(model, batches)
    assert actual["0.weight"].item() == pytest.approx(2 * 54 * 2**5)
    assert actual["2.weight"].item() == pytest.approx(2 * 24 * 3**5)


def test_branches_joins_as_it_says() -> None:
    x = torch.ones(1, 2, 2, 2)
    assert Branches(nn.Identity(), nn.Identity())(x).shape == (1, 2, 2, 2)
    assert Branches(nn.Identity(), nn.Identity(), join="cat")(x).shape == (1, 4, 2, 2)


def test_the_mean_over_signs_is_px_by_paths() -> None:
    small = nn.Sequential(nn.Linear(3, 1, False), nn.ReLU(), nn.Linear(1, 2, False), nn.ReLU(), nn.Linear(2, 1, False))
    x = torch.rand(2, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    draw(small.double(), seed=7)
    weights = masked(small, None)
    parts = [(score / weights[name] ** 2).sum() for name, score in scores.px(small, x).items()]
    expected = torch.stack(parts).sum()
    assert expected > 0
    torch.testing.assert_close(mean_trace_over_signs(FIXED_GATES["dense"](small, x), weights), expected)


def test_the_trace_counts_kept_weights_only() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.tensor([[2.0, 3.0], [1.0, 1.0]], dtype=torch.float64)
    assert trace(model, x).item() == 4 + 9 + 1 + 1
    assert trace(model, x, {"weight": torch.tensor([[True, False]])}).item() == 4 + 1
