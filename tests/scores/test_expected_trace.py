"""What px means: the expected NTK trace over random signs, exactly where no two paths use the same weights.

Enumerated over all 2 ** W sign patterns, with the gates of the present weights held fixed.
"""

import pytest
import torch
from torch import Tensor, nn

import pathex
from brute_force.cases import draw
from brute_force.ntk import FIXED_GATES, mean_trace_over_signs, trace

LIVE = [0, 2, 3]  # seeds whose tiny dense network is not dead at every image


def dense() -> nn.Sequential:
    layers = [nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(2, 2, bias=False))


def conv(pool: nn.Module, features: int) -> nn.Sequential:
    layers = [nn.Conv2d(1, 1, 2, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 2, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(features, 1, bias=False))


def fill(model: nn.Sequential, shape: tuple[int, ...], seed: int, positive: bool = False) -> Tensor:
    """Fill the network; images, all values positive on request as those of photographs are."""
    generator = draw(model.double(), seed)
    x = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    return x.abs() if positive else x


def summed_derivative(model: nn.Sequential, score: dict[str, Tensor]) -> Tensor:
    """The sum over j of dR / d(theta_j ** 2), from theta_j ** 2 times it."""
    return torch.stack([(entry / model.get_parameter(name).detach() ** 2).sum() for name, entry in score.items()]).sum()


def sign_mean(kind: str, model: nn.Sequential, x: Tensor) -> Tensor:
    weights = {name: entry.detach() for name, entry in model.named_parameters()}
    return mean_trace_over_signs(FIXED_GATES[kind](model, x), weights)


@pytest.mark.parametrize("seed", LIVE)
def test_px_is_the_expected_trace_of_a_dense_network(seed: int) -> None:
    model = dense()
    x = fill(model, (2,), seed)
    expected = sign_mean("dense", model, x)
    assert expected > 0
    torch.testing.assert_close(summed_derivative(model, pathex.score(model, "px", x)), expected)


@pytest.mark.parametrize("seed", LIVE)
def test_px_is_the_expected_trace_of_convolutions_that_no_pool_follows(seed: int) -> None:
    """Weights are shared over positions, but the last layer tells the positions apart."""
    model = conv(nn.Sequential(), 4)
    x = fill(model, (1, 4, 4), seed)
    torch.testing.assert_close(summed_derivative(model, pathex.score(model, "px", x)), sign_mean("conv", model, x))


@pytest.mark.filterwarnings("ignore:all scores are zero")
@pytest.mark.parametrize(("positive", "lowest", "highest"), [(False, 1.7, 1.9), (True, 2.7, 3.0)])
def test_gap_that_sharing_under_a_global_pool_opens(positive: bool, lowest: float, highest: float) -> None:
    """Nine positions under one pool use the same weights: cross terms stay, at most nine times the px value.

    Measured mean of expected trace over px: 1.79 for images of mixed sign, 2.82 for positive ones.
    """
    ratios = []
    for seed in range(12):
        model = conv(nn.AdaptiveAvgPool2d(1), 1)
        x = fill(model, (1, 5, 5), seed, positive)
        derivative = summed_derivative(model, pathex.score(model, "px", x))
        if derivative > 0:
            ratios.append((sign_mean("conv", model, x) / derivative).item())
    assert max(ratios) < 9
    assert lowest < sum(ratios) / len(ratios) < highest


def test_the_sign_pattern_of_the_network_itself_has_its_own_trace() -> None:
    model = dense()
    x = fill(model, (2,), seed=3)
    jacobian = torch.func.jacrev(FIXED_GATES["dense"](model, x))(dict(model.named_parameters()))
    squares = torch.stack([(entry**2).sum() for entry in jacobian.values()])
    torch.testing.assert_close(squares.sum().detach(), trace(model, x).detach())


@pytest.mark.parametrize("seed", LIVE)
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_trace_is_below_the_bound_that_px_literal_scores(seed: int, kind: str) -> None:
    model = dense() if kind == "dense" else conv(nn.AdaptiveAvgPool2d(1), 1)
    x = fill(model, (2,) if kind == "dense" else (1, 4, 4), seed)
    bound = summed_derivative(model, pathex.score(model, "px-literal", x))
    assert 0 < trace(model, x) <= bound
