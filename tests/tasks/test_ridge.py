import pytest
import torch

from brute_force.ridge import ridge
from pathex.errors import InvalidInput
from pathex.tasks.linear_head import ridge_sums, solve_ridge


def sums_of(features, targets, batch=7):
    return sum(ridge_sums(*pair) for pair in zip(features.split(batch), targets.split(batch), strict=True))


def solve(features, targets, alpha=1.0, **options):
    return solve_ridge(sums_of(features, targets), features.shape[1], alpha, **options)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize(("images", "size"), [(40, 6), (12, 30), (1, 3)])
def test_the_solution_is_that_of_all_images_at_once(images, size, alpha, intercept):
    draws = torch.Generator().manual_seed(images + size)
    # Features behind a ReLU and a pool are positive, far from mean zero.
    features = torch.randn(images, size, generator=draws, dtype=torch.float64).abs() + 3
    targets = torch.randn(images, 4, generator=draws, dtype=torch.float64)
    weights, bias = solve(features, targets, alpha, intercept=intercept)
    wanted, wanted_bias = ridge(features.numpy(), targets.numpy(), alpha, intercept)
    assert weights.dtype == bias.dtype == torch.float64
    assert weights.numpy() == pytest.approx(wanted, rel=1e-7, abs=1e-9)
    assert bias.numpy() == pytest.approx(wanted_bias, rel=1e-7, abs=1e-9)


def test_the_gradient_of_the_objective_vanishes():
    draws = torch.Generator().manual_seed(5)
    features, targets = torch.rand(30, 8, generator=draws).double(), torch.rand(30, 3, generator=draws).double()
    weights, bias = (part.requires_grad_() for part in solve(features, targets))
    loss = (targets - features @ weights.T - bias).square().sum() + weights.square().sum()
    loss.backward()
    assert float(weights.grad.abs().max()) < 1e-10
    assert float(bias.grad.abs().max()) < 1e-10


def test_batches_their_order_and_processes_play_no_part():
    draws = torch.Generator().manual_seed(1)
    features, targets = torch.rand(50, 9, generator=draws), torch.rand(50, 2, generator=draws)
    order = torch.randperm(50, generator=draws)
    whole = sums_of(features, targets, 50)
    shuffled = sums_of(features[order], targets[order], 3)
    parts = sums_of(features[:8], targets[:8]) + sums_of(features[8:], targets[8:])
    for other in (shuffled, parts):
        for one, two in zip(solve_ridge(whole, 9, 1.0), solve_ridge(other, 9, 1.0), strict=True):
            assert torch.allclose(one, two, rtol=1e-10, atol=1e-12)


def test_features_that_are_all_zero_huge_or_not_finite():
    weights, bias = solve(torch.zeros(4, 3), torch.eye(2)[torch.tensor([0, 0, 0, 1])])
    assert not weights.any()
    assert bias.tolist() == [0.75, 0.25]  # the shares of the classes
    features = 1e12 * (1 + 1e-3 * torch.rand(20, 6, generator=torch.Generator().manual_seed(3)).double())
    assert all(torch.isfinite(part).all() for part in solve(features, torch.eye(2)[torch.arange(20) % 2]))
    with pytest.raises(InvalidInput, match="not finite"):
        solve(torch.full((3, 2), torch.inf), torch.ones(3, 2))
    with pytest.raises(InvalidInput, match="no images"):
        solve_ridge(torch.zeros(5, 5), 2, 1.0)
