"""What must hold for scores whatever the network's numbers are, and what px means.

That is the expected NTK trace over random signs, exactly where no two paths use the same weights: enumerated over all
2 ** W sign patterns, with the gates of the present weights held fixed.
"""

import copy
import math
import sys

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import assert_close, draw, perceptron
from brute_force.kernels import jacobian, mean_trace_over_signs, trace_with_fixed_gates
from pathex.errors import InvalidInput
from pathex.masks import prunable_weights
from pathex.models import CifarResNet
from pathex.scores import precision
from snapshots import unchanged

PATH_METHODS = ["px", "px-literal", "synflow-l2"]


def flat(scores):
    return torch.cat([score.double().flatten() for score in scores.values()])


@pytest.mark.filterwarnings("ignore:.* of memory, more than")
def test_kept_sets_do_not_depend_on_memory(model, images):
    whole = pathex.prune(model, "px", sparsity=0.9, data=images, rounds=3).mask
    for memory in ("200KB", "50KB", None):
        assert pathex.prune(model, "px", sparsity=0.9, data=images.flip(0), rounds=3, memory=memory).mask == whole


@pytest.mark.filterwarnings("ignore:.* of memory, more than")
def test_calibration_reads_the_first_images_in_canonical_order(model, images):
    few = pathex.score(model, "px", images, calibration_images=4)
    assert_close(pathex.score(model, "px", images.flip(0), calibration_images=4, memory="50KB"), few)
    assert not torch.allclose(flat(few), flat(pathex.score(model, "px", images)))
    assert_close(pathex.score(model, "px", images, calibration_images=12), pathex.score(model, "px", images))


def test_running_statistics_ignore_the_other_images(model, images):
    for calibration, adds_up in (("running", True), ("batch", False)):
        halves = [pathex.score(model, "px", part, calibration=calibration) for part in images.split(6)]
        whole = pathex.score(model, "px", images, calibration=calibration)
        assert torch.allclose(flat(halves[0]) + flat(halves[1]), flat(whole), rtol=1e-10) == adds_up


def test_redrawn_weights_depend_on_seed_and_round_only(model, images):
    drawn = {}
    for run, seed in enumerate((0, 0, 1)):

        def draw(name, weight, source, run=run):
            entry = torch.randn(weight.shape, generator=source, dtype=weight.dtype)
            if name == "fc.weight":
                drawn.setdefault(run, []).append(entry)
            return entry

        pathex.prune(model, "px", sparsity=0.5, data=images, rounds=3, redraw=draw, seed=seed)
    first, again, other = map(torch.stack, drawn.values())
    assert len(first) == 3 and torch.equal(first, again)
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])


def test_redrawn_weights_have_the_spread_of_their_own_tensor(model, images):
    wide = copy.deepcopy(model)
    with torch.no_grad():
        wide.fc.weight *= 10
    with unchanged(wide):
        found, small = (pathex.score(net, "px", images, redraw=True) for net in (wide, model))
    torch.testing.assert_close(found["fc.weight"], 100 * small["fc.weight"])
    assert not torch.allclose(flat(small), flat(pathex.score(model, "px", images)))
    assert torch.allclose(flat(small), flat(pathex.score(model, "px", images, redraw=True)), rtol=1e-14)
    with pytest.raises(InvalidInput, match=r"shape \(2, 3, 3, 3\) for 'conv.weight', not \(1,\)"):
        pathex.score(model, "px", images, redraw=lambda name, weight, source: torch.ones(1))


@pytest.fixture
def chain():
    torch.manual_seed(5)
    convolutions = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU()]
    head = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)]
    return nn.Sequential(*convolutions, *head).double(), torch.randn(6, 2, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("method", [*PATH_METHODS, "synflow"])
def test_score_is_conserved_on_a_chain(method, chain):
    scores = pathex.score(chain[0], method, chain[1])
    sums = torch.stack([score.sum() for score in scores.values()])
    assert sums[0] > 0
    torch.testing.assert_close(sums, sums[:1].expand_as(sums), rtol=1e-10, atol=0)
    torch.testing.assert_close(scores["0.weight"].sum((1, 2, 3)), scores["3.weight"].sum((0, 2, 3)), rtol=1e-10, atol=0)
    torch.testing.assert_close(scores["7.weight"].sum(1), scores["9.weight"].sum(0), rtol=1e-10, atol=0)


@pytest.mark.parametrize("method", ["px", "px-literal", "magnitude"])
def test_rescaling_units_between_relus_changes_magnitudes_only(method, chain):
    model, x = chain
    rescaled = copy.deepcopy(model)
    factors = torch.tensor([0.1, 3.0, 7.0, 0.5, 20.0], dtype=torch.float64)
    with torch.no_grad():
        rescaled[7].weight *= factors[:, None]
        rescaled[7].bias *= factors
        rescaled[9].weight /= factors
    found, expected = (pathex.score(network, method, x) for network in (rescaled, model))
    if method == "magnitude":
        expected |= {"7.weight": factors[:, None] * expected["7.weight"], "9.weight": expected["9.weight"] / factors}
    assert_close(found, expected)


def test_printed_px_is_one_factor_times_synflow_l2_in_the_first_round(model, images):
    literal, control = (flat(pathex.score(model, name, images)) for name in ("px-literal", "synflow-l2"))
    ratio = literal / control
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-10, atol=0)
    gated = flat(pathex.score(model, "px", images)) / control
    assert gated.max() / gated.min() > 2


@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
def test_printed_px_stays_close_to_synflow_l2_over_many_rounds():
    torch.manual_seed(0)
    model, x = CifarResNet(8, width=4), torch.randn(8, 3, 8, 8)
    literal, control, gated = (
        pathex.prune(model, name, sparsity=0.982, data=x, rounds=20).mask for name in ("px-literal", "synflow-l2", "px")
    )
    assert 1 - ((literal - control).kept + (control - literal).kept) / control.total > 0.98
    assert (literal & control).kept > 0.5 * control.kept
    assert (literal & control).kept > (gated & control).kept


def test_random_layers_have_about_one_density(model, images):
    mask = pathex.prune(model, "random", sparsity=0.5, data=images).mask
    for kept, size in mask.counts().values():
        assert abs(kept - size / 2) < 4 * (size / 4) ** 0.5 + 1


@pytest.mark.parametrize("method", ["px", "px-literal", "synflow", "magnitude"])
def test_what_a_mask_removed_need_not_be_finite(model, images, method):
    mask = pathex.Mask({name: torch.rand(w.shape) > 0.2 for name, w in prunable_weights(model).items()})
    expected = pathex.score(model, method, images, mask=mask)
    with torch.no_grad():
        for number, (name, weight) in enumerate(prunable_weights(model).items()):
            weight[~mask[name]] = (math.nan, math.inf, 0.0)[number % 3]
    assert_close(pathex.score(model, method, images, mask=mask), expected)


def test_float32_agrees_with_float64(model, images):
    for method in PATH_METHODS:
        wide, narrow = (pathex.score(net, method, images) for net in (model, copy.deepcopy(model).float()))
        torch.testing.assert_close(flat(narrow), flat(wide), rtol=1e-3, atol=1e-5 * float(flat(wide).max()))


@pytest.mark.parametrize("method", ["px", "synflow", "synflow-l2"])
@pytest.mark.parametrize("factor", [3e4, 1e-9])
def test_scores_that_leave_float32_are_computed_in_float64(method, factor, monkeypatch):
    torch.manual_seed(0)
    model = perceptron(*[8] * 11, 2, bias=False)
    with torch.no_grad():
        for layer in model[:-1:2]:
            layer.weight.abs_().mul_(factor)
    images = torch.rand(3, 8)
    scores = pathex.score(model, method, images)
    assert torch.isfinite(flat(scores)).all() and all(score.all() for score in scores.values())
    expected = pathex.score(copy.deepcopy(model).double(), method, images.double())
    torch.testing.assert_close(flat(scores), flat(expected), rtol=1e-4, atol=0)
    # The next round starts where the last one ended.
    precisions = []

    def spied(reader, summed):
        precisions.append(reader.precision)
        return precision.with_sum(reader, summed)

    monkeypatch.setattr(sys.modules[type(pathex.methods(method)).__module__], "with_sum", spied)
    pathex.prune(model, method, sparsity=0.5, data=images, rounds=3)
    assert precisions == [torch.float32, torch.float64, torch.float64, torch.float64]


LIVE = [0, 2, 3]  # seeds whose tiny dense network is not dead at every image


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


NETWORKS = {
    "dense": (lambda: perceptron(2, 2, 2, 2, bias=False), (2,)),
    "conv": (lambda: conv(nn.Sequential(), 4), (1, 4, 4)),
    "pooled": (lambda: conv(nn.AdaptiveAvgPool2d(1), 1), (1, 4, 4)),
}


@pytest.mark.parametrize("seed", LIVE)
@pytest.mark.parametrize("name", NETWORKS)
def test_px_is_the_expected_trace_and_px_literal_scores_a_bound_of_the_trace(name, seed):
    make, shape = NETWORKS[name]
    model = make()
    x = fill(model, shape, seed)
    here, expected = trace(model, x), mean_trace_over_signs(model, x)
    torch.testing.assert_close(trace_with_fixed_gates(model, x), here)
    assert expected > 0 and here <= summed_derivative(model, x, "px-literal")
    if name == "pooled":  # where paths use the same weights
        assert here > 0
    else:
        torch.testing.assert_close(summed_derivative(model, x), expected)


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
