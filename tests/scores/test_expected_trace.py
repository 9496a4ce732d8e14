"""What px means: the expected NTK trace over random signs, exactly where no two paths use the same weights.

Enumerated over all 2 ** W sign patterns, with the gates of the present weights held fixed.
"""

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import draw
from brute_force.kernels import jacobian, mean_trace_over_signs, trace_with_fixed_gates

LIVE = [0, 2, 3]  # seeds whose tiny dense network is not dead at every image


def dense():
    layers = [nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(2, 2, bias=False))


def conv(pool, features):
    layers = [nn.Conv2d(1, 1, 2, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 2, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(features, 1, bias=False))


def fill(model, shape, seed):
    generator = draw(model.double(), seed)
    return torch.randn(3, *shape, generator=generator, dtype=torch.float64)


def trace(model, x):
    """Sum over images, outputs and weights of the squared derivative."""
    return sum(derivative.square().sum() for derivative in jacobian(model, x, None, "running")[1].values())


def summed_derivative(model, x, method="px"):
    """The sum over j of dR / d(theta_j ** 2), from theta_j ** 2 times it."""
    scores = pathex.score(model, method, x)
    return sum((score / model.get_parameter(name).detach() ** 2).sum() for name, score in scores.items())


@pytest.mark.parametrize("seed", LIVE)
@pytest.mark.parametrize(("make", "shape"), [(dense, (2,)), (lambda: conv(nn.Sequential(), 4), (1, 4, 4))])
def test_px_is_the_expected_trace(make, shape, seed):
    model = make()
    x = fill(model, shape, seed)
    expected = mean_trace_over_signs(model, x)
    assert expected > 0
    torch.testing.assert_close(summed_derivative(model, x), expected)
    # The sign pattern of the network itself has its own trace.
    torch.testing.assert_close(trace_with_fixed_gates(model, x), trace(model, x))


@pytest.mark.filterwarnings("ignore:all scores are zero")
@pytest.mark.parametrize(("positive", "lowest", "highest"), [(False, 1.7, 1.9), (True, 2.7, 3.0)])
def test_gap_that_sharing_under_a_global_pool_opens(positive, lowest, highest):
    """Nine positions under one pool use the same weights: cross terms stay, at most nine times the px value.

    Measured mean of expected trace over px: 1.79 for images of mixed sign, 2.82 for positive ones, as photographs are.
    """
    ratios = []
    for seed in range(12):
        model = conv(nn.AdaptiveAvgPool2d(1), 1)
        x = fill(model, (1, 5, 5), seed)
        x = x.abs() if positive else x
        derivative = summed_derivative(model, x)
        if derivative > 0:
            ratios.append((mean_trace_over_signs(model, x) / derivative).item())
    assert max(ratios) < 9
    assert lowest < sum(ratios) / len(ratios) < highest


@pytest.mark.parametrize("seed", LIVE)
@pytest.mark.parametrize(
    ("make", "shape"), [(dense, (2,)), (lambda: conv(nn.AdaptiveAvgPool2d(1), 1), (1, 4, 4))], ids=["dense", "conv"]
)
def test_the_trace_is_below_the_bound_that_px_literal_scores(make, shape, seed):
    model = make()
    x = fill(model, shape, seed)
    assert 0 < trace(model, x) <= summed_derivative(model, x, "px-literal")
