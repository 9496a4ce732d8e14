"""Estimates of the trace and the spectrum against the exact kernel."""

import math
import sys

import pytest
import torch
from torch import nn

from brute_force.cases import build, random_mask
from pathex import ntk
from pathex.errors import PathexError
from pathex.ntk.estimates import Operator, estimated, half_width
from pathex.ntk.network import network_of
from refusals import refused

ESTIMATES = ("hutchinson", "hutch++", "xtrace")


@pytest.mark.parametrize("mode", ["stored", "calibrated", "batch"])
def test_products_are_those_of_the_kernel(mode):
    model, x = build("residual", int(torch.randint(1000, ())), images=5)
    mask = random_mask(model, 1)
    operator = Operator(network_of(model, x, mask, {"batch_norm": mode, "memory": "10kB" if mode != "batch" else None}))
    vectors = torch.randn(10, 3, dtype=torch.float64)
    expected = ntk.kernel(model, x, mask, batch_norm=mode).values @ vectors
    torch.testing.assert_close(operator @ vectors, expected, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(operator @ vectors[:, 0], expected[:, 0], rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("method", ESTIMATES)
@pytest.mark.parametrize("name", ["max-pool", "residual", "transposed"])
def test_at_least_90_of_100_seeds_are_within_two_of_their_own_standard_errors(name, method):
    model, x = build(name, int(torch.randint(1000, ())), images=80 if name != "transposed" else 5)
    kernel = ntk.kernel(model.eval(), x)
    found = [estimated(kernel.values, method, 120, seed) for seed in range(100)]
    assert sum(abs(value - kernel.trace) <= 2 * error for value, error in found) >= 90
    spread = torch.tensor([value for value, _ in found]).std()
    # The errors are those that the estimates have, within what 100 of them tell.
    assert 0.7 < float(torch.tensor([error for _, error in found]).mean() / spread) < 1.7


@pytest.mark.parametrize("method", ESTIMATES)
def test_an_estimate_of_a_network_is_that_of_its_kernel(method):
    model, x = build("max-pool", 2, images=20)
    mask = random_mask(model, 1)
    kernel = ntk.kernel(model.eval(), x, mask)
    found = ntk.trace(model, x, mask, method, products=36, seed=3)
    value, error = estimated(kernel.values, method, 36, 3)
    assert (float(found), found.standard_error) == pytest.approx((value, error), rel=1e-8)
    assert found.value != float(ntk.trace(model, x, mask, method, products=36, seed=4))
    assert not found.by_parameter and not len(found.by_class)


def test_estimates_leave_the_random_state():
    model, x = build("max-pool", 2, images=20)
    before = torch.get_rng_state()
    ntk.trace(model.eval(), x, method="xtrace", products=24)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interval_is_wider_for_few_repetitions():
    # Student's t of 95 %: 12.706 for two samples, 2.776 for five.
    assert half_width(2) == pytest.approx(12.706 / 2 / math.sqrt(2), rel=1e-4)
    assert half_width(5) == pytest.approx(2.776 / 2 / math.sqrt(5), rel=1e-3)


def test_the_spectrum_of_a_kernel_by_hand():
    model, x = build("mlp", int(torch.randint(1000, ())), images=6)
    found = ntk.spectrum(ntk.kernel(model.eval(), x, form="trace"))
    values = torch.linalg.eigvalsh(ntk.kernel(model, x, form="trace").values)
    shares = values / values.sum()
    assert float(found.effective_rank) == pytest.approx(float((-shares * shares.log()).sum().exp()), rel=1e-10)
    assert found.condition == pytest.approx(float(values[-1] / values[0]), rel=1e-8)
    assert float(found.log_determinant()) == pytest.approx(float(values.log().sum()), rel=1e-8)
    assert float(found.log_determinant(2.0)) == pytest.approx(float((values + 2).log().sum()), rel=1e-10)
    assert found.log_determinant().standard_error == found.effective_rank.standard_error == 0
    assert (found.size, found.method) == (6, "exact")


def test_a_singular_kernel_says_so():
    model, x = nn.Linear(2, 1).double().eval(), torch.randn(6, 2, dtype=torch.float64)
    found = ntk.spectrum(ntk.kernel(model, x))  # of three parameters
    assert float((found.values > found.tolerance).sum()) == 3
    assert found.condition == math.inf and float(found.log_determinant()) == -math.inf
    assert math.isfinite(float(found.log_determinant(1e-3)))
    axis, density = found.density(points=2000)
    assert float(torch.trapezoid(density, axis)) == pytest.approx(0.5, abs=0.01)
    assert float(axis[density.argmax()]) == pytest.approx(0, abs=3)
    nothing = ntk.spectrum(ntk.kernel(model, x, {"weight": torch.zeros(1, 2, dtype=torch.bool)}))
    assert float(nothing.effective_rank) == pytest.approx(1)  # of ones, by the bias
    with refused("a kernel of zeros has no density"):
        zeros = nn.Linear(2, 1, bias=False).double().eval()
        ntk.spectrum(ntk.kernel(zeros, x, {"weight": torch.zeros(1, 2, dtype=torch.bool)})).density()


def test_lanczos_agrees_with_the_exact_spectrum():
    model, x = build("residual", int(torch.randint(1000, ())), images=20)
    exact = ntk.spectrum(ntk.kernel(model.eval(), x))
    found = ntk.lanczos(model, x, steps=15, repetitions=40)
    ranks, determinants = found.effective_rank, found.log_determinant(1.0)
    assert abs(float(ranks) - float(exact.effective_rank)) <= 3 * ranks.standard_error
    assert abs(float(determinants) - float(exact.log_determinant(1.0))) <= 3 * determinants.standard_error
    each = torch.stack(
        [(values + 1).log() @ weights for values, weights in zip(found.values, found.weights, strict=True)]
    )
    # Of what is linear the jackknife is the error of the mean.
    assert determinants.standard_error == pytest.approx(half_width(40) * float(each.std()), rel=1e-6)
    assert found.extremes[1] == pytest.approx(exact.extremes[1], rel=1e-6)
    assert exact.extremes[0] - 1e-9 <= found.extremes[0]
    torch.testing.assert_close(found.weights.sum(1), torch.full((40,), 40.0, dtype=torch.float64))
    with refused("ridge is 0.0; allowed: a positive number, and 0 for an exact spectrum"):
        found.log_determinant()


def test_wrong_arguments_are_refused_in_one_line(monkeypatch):
    model, x = build("mlp", 1)
    with refused("products=120 are no fewer than the 6 columns.*method='exact'"):
        ntk.trace(model, x, method="hutchinson")
    with refused("products must be an integer of at least 24, got 4"):
        ntk.trace(model, x, method="hutchinson", products=4)
    with refused("steps must be an integer in 2..5, got 20"):
        ntk.lanczos(model, x)
    with refused("seed must be an integer of at least 0, got -1"):
        ntk.lanczos(model, x, steps=3, seed=-1)
    with refused("too low a rank for this estimate.*allowed: hutchinson", PathexError):
        ntk.trace(nn.Linear(1, 1, bias=False), torch.ones(40, 1), method="xtrace", products=24)
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with refused("estimates of the kernel need curvlinops: pip install 'pathex\\[ntk\\]'"):
        ntk.trace(model, torch.randn(80, 3).double(), method="xtrace")
