"""Scores equal their slow twins, without any normalisation; limits and statistics of NTK-SAP and of the diagonals."""

import itertools
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import pathex
import small_timm
from brute_force import gradients, kernels, scores
from brute_force.cases import CASES, Wired, assert_close, build, draw, masked, prunable, random_mask
from brute_force.gradients import labelled
from pathex.errors import InvalidInput
from pathex.scores import Problem, find, generator, jacobian, ntk_sap
from pathex.scores.model_reader import ModelReader
from variants import KERNELS

pytestmark = [
    # torch.func.jvp, which a twin uses, loads compiled rules when it is first called.
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning"),
    # Networks as small as these have dead units.
    pytest.mark.filterwarnings("ignore:all scores are zero:pathex.errors.PathexWarning"),
]

RELU = ["mlp", "vector-norm", "dilated", "residual", "max-pool", "average-branch", "transposed"]  # the released code's
LOSS = ["mlp", "vector-norm", "dilated", "residual", "max-pool", "average-branch", "depthwise", "shared"]
FISHER = ["mlp", "residual", "vector-norm", "max-pool", "shared"]
STATISTICS, ALL, NONE = ("batch", "running"), ("batch", "running", "train"), (None,)


class Twin(NamedTuple):
    """The twin of a method, from a model, labelled batches, a mask and a calibration."""

    method: str
    score: Any
    seed: int
    calibrations: Any = STATISTICS
    cases: Any = tuple(CASES)
    sizes: Any = (3,)
    options: Any = ()


def _images(twin):
    """A twin of all images together."""

    def score(model, batches, keep, calibration):
        how = () if calibration is None else (calibration,)
        return twin(model, torch.cat([x for x, _ in batches]), keep, *how)

    return score


def _predicted(model, x, keep, calibration):
    return kernels.fisher_diagonal(model, x, None, keep, calibration)


def _released_px(model, batches, keep, calibration, norms=()):
    return scores.px_cvpr24(model, [x for x, _ in batches], keep, norms)


def _released_later(model, batches, keep, calibration):
    return scores.px_cvpr24_v2(model, [x for x, _ in batches], keep)


NORMS = ["3.branches.1.*"]
TWINS = {
    "px": Twin("px", _images(scores.px), 26),
    "px-literal": Twin("px-literal", _images(scores.px_literal), 26),
    "synflow-l2": Twin("synflow-l2", _images(scores.synflow_l2), 26),
    "synflow": Twin("synflow", _images(scores.synflow), 22, NONE),
    "released": Twin("synflow", _images(scores.synflow_released), 23, NONE, RELU, options={"shifts": "released"}),
    "px-cvpr24": Twin("px-cvpr24", _released_px, 24, NONE, RELU, (3, 2)),
    "px-cvpr24-v2": Twin("px-cvpr24-v2", _released_later, 24, NONE, RELU, (3, 2)),
    "squared norms": Twin(
        "px-cvpr24", partial(_released_px, norms=NORMS), 25, NONE, ["residual"], (3,), {"squared_norms": NORMS}
    ),
    **{method: Twin(method, twin, 31, ALL, LOSS, (3, 2)) for method, twin in gradients.TWINS.items()},
    "ntk-diagonal": Twin("ntk-diagonal", _images(kernels.ntk_diagonal), 31, ALL),
    "fisher-diagonal": Twin(
        "fisher-diagonal", lambda m, data, *how: kernels.fisher_diagonal(m, *data[0], *how), 32, ALL, FISHER, (4,)
    ),
    "of the model": Twin("fisher-diagonal", _images(_predicted), 32, ALL, FISHER, (4,), {"labels": "model"}),
}


@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize(
    ("name", "calibration", "case"),
    [(name, how, case) for name, twin in TWINS.items() for how in twin.calibrations for case in twin.cases],
)
def test_scores_equal_the_twin(name, calibration, case, pruned):
    twin = TWINS[name]
    model, batches = labelled(case, twin.seed, twin.sizes)
    keep = random_mask(model, twin.seed) if pruned else None
    options = dict(twin.options) | ({} if calibration is None else {"calibration": calibration})
    found = pathex.score(model, twin.method, batches, mask=pathex.Mask(keep) if pruned else None, **options)
    assert_close(found, twin.score(model, batches, keep, calibration))


@pytest.mark.parametrize("form", ["taylor", "saliency", "diagonal"])
@pytest.mark.parametrize("case", ["mlp", "residual", "max-pool"])
def test_hutchinson_taylor_equals_the_hessian_with_the_same_signs(case, form):
    model, ((x, y),) = labelled(case, 33, (4,))
    keep = random_mask(model, 33)
    weights = {name: model.get_parameter(name).detach() for name in prunable(model)}
    given = Problem(model, weights, [(x, y)], mask=keep, seed=5, round=2)

    def drawn(source):
        parts = [torch.randint(0, 2, weight.shape, generator=source).flatten() for weight in weights.values()]
        return torch.cat(parts).double() * 2 - 1

    sources = [generator(5, 2, number) for number in range(1, 5)]
    signs = [[drawn(source) for _ in range(3)] for source in sources]
    parts = list(zip(given.images.split(1), given.labels.split(1), strict=True))
    expected = gradients.hutchinson_taylor(model, parts, signs, keep, form=form)
    assert_close(replace(find("hutchinson-taylor"), samples=3, form=form).score(given), expected)


def test_hutchinson_is_exact_where_the_hessian_is_diagonal():
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.eye(3, dtype=torch.float64)
    how = {"form": "diagonal", "loss": "mse", "temperature": 1.0, "samples": 1}
    found = pathex.score(model, "hutchinson-taylor", (x, torch.zeros(3, 1)), **how)
    torch.testing.assert_close(found["weight"], torch.full((1, 3), 2 / 3, dtype=torch.float64))


def _smooth(activation):
    return nn.Sequential(nn.Linear(3, 5), activation(), nn.LayerNorm(5), nn.Linear(5, 3))


def _of_one_gradient():
    """Autograd hands out the gradients of both weights as one tensor."""
    layers = {name: nn.Linear(3, 3, bias=False) for name in ("first", "second")}
    return Wired(lambda net, x: nn.functional.linear(x, net.first.weight + net.second.weight), **layers)


@pytest.mark.parametrize(
    "make", [_of_one_gradient, *(partial(_smooth, getattr(nn, a)) for a in ("GELU", "SiLU", "Tanh", "Softplus"))]
)
def test_diagonals_of_networks_that_have_no_paths(make):
    model = make().double()
    x, y = torch.randn(4, 3, generator=draw(model, 2), dtype=torch.float64), torch.arange(4) % 3
    assert_close(pathex.score(model, "ntk-diagonal", x), kernels.ntk_diagonal(model, x))
    assert_close(pathex.score(model, "fisher-diagonal", (x, y)), kernels.fisher_diagonal(model, x, y))


@pytest.mark.parametrize("labels", ["given", "model"])
def test_fisher_diagonal_of_pixels(labels):
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)).double()
    generator = draw(model, 4)
    x = torch.randn(3, 1, 3, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (3, 2, 3), generator=generator)
    y[0, 0, 1], y[2] = 255, 255
    found = pathex.score(model, "fisher-diagonal", (x, y), labels=labels)
    assert_close(found, kernels.fisher_diagonal(model, x, y if labels == "given" else None))


def test_fisher_diagonal_of_the_model_needs_no_labels():
    model, x = build("mlp", 33)
    with pytest.raises(InvalidInput, match="'fisher-diagonal' needs labels"):
        pathex.score(model, "fisher-diagonal", x)
    assert_close(pathex.score(model, "fisher-diagonal", x, labels="model"), kernels.fisher_diagonal(model, x, None))
    single = nn.Sequential(nn.Linear(3, 1))
    with pytest.raises(InvalidInput, match=r"fisher-diagonal needs outputs .* two classes or more, not \(1, 1\)"):
        pathex.score(single, "fisher-diagonal", torch.randn(2, 3), labels="model")


@pytest.mark.parametrize("method", ["ntk-diagonal", "fisher-diagonal"])
def test_projections_are_exact_on_average(method, monkeypatch):
    model, x = build("residual", 34, images=2)
    patterns = [torch.tensor(signs).double() for signs in itertools.product([1.0, -1.0], repeat=4)]
    left = iter(patterns)
    monkeypatch.setattr(jacobian, "signs", lambda rows, source: next(left).view(rows.shape))
    options = {"labels": "model"} if method == "fisher-diagonal" else {}
    found = pathex.score(model, method, x, projections=len(patterns), **options)
    assert_close(found, pathex.score(model, method, x, projections=0, **options))


def test_projections_stay_within_their_standard_error():
    model, x = build("mlp", 35)
    weights, derivatives = kernels.jacobian(model, x, None, "batch")
    seeds, count = 40, 16
    runs = [pathex.score(model, "ntk-diagonal", x, projections=count, seed=seed) for seed in range(seeds)]
    errors = []
    for name, weight in weights.items():
        squares = (derivatives[name].flatten(0, 1) * weight) ** 2
        mean = squares.sum(0)
        # The variance of (sum a v)^2 over independent signs v.
        variance = 2 * (mean**2 - (squares**2).sum(0))
        found = torch.stack([run[name] for run in runs])
        # Five standard errors, for each of the fewer than fifty weights: one draw in 30,000 would fail.
        allowed = 5 * (variance / (seeds * count)).sqrt()
        assert ((found.mean(0) - mean).abs() <= allowed + 1e-12 * mean).all(), name
        errors.append((((found - mean) / mean.clamp_min(1e-300)) ** 2)[:, mean > 0].flatten())
    # The stated bound on the mean squared relative error, with a tenth for the luck of forty runs.
    assert 0 < torch.cat(errors).mean() <= 1.1 * 2 / count


@pytest.mark.parametrize(("outputs", "projections"), [(2, 0), (1400, 32)])
def test_the_default_is_exact_until_it_gets_dear(outputs, projections):
    model, x = nn.Linear(3, outputs).double(), torch.randn(3, 3, dtype=torch.float64)
    default = pathex.score(model, "ntk-diagonal", x)
    assert_close(default, pathex.score(model, "ntk-diagonal", x, projections=projections), 1e-15)
    other = pathex.score(model, "ntk-diagonal", x, projections=31 if projections else 32)
    assert not torch.equal(default["weight"], other["weight"])


def drawn(model, x, keep, number=1):
    """A redraw function of known weights, those weights, and the direction of a round."""
    entries, generator = masked(model, None), torch.Generator().manual_seed(8)
    theta = {n: torch.randn(entries[n].shape, generator=generator, dtype=torch.float64) for n in prunable(model)}
    own = {name: model.get_parameter(name) for name in theta}
    problem = Problem(model, own, [(x, None)], keep, round=number)
    reader = ModelReader(problem, "ntk-sap", "batch", 1024, False, "auto", None)
    return (lambda name, tensor, source: theta[name]), theta, ntk_sap._direction(reader)


@pytest.mark.parametrize("calibration", ["batch", "running", "train"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("epsilon", [0.05, None], ids=["difference", "exact"])
@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "masked"])
def test_ntk_sap(case, epsilon, calibration, pruned):
    model, x = build(case, 41)
    keep = random_mask(model, 3) if pruned else None
    redraw, theta, direction = drawn(model, x, keep)
    options = {"exact": True} if epsilon is None else {"epsilon": epsilon}
    options |= {"redraw": redraw, "inputs": "data", "calibration": calibration, "scales": "stored"}
    found = pathex.score(model, "ntk-sap", x, mask=pathex.Mask(keep) if pruned else None, **options)
    expected = kernels.ntk_sap(model, x, theta, direction, epsilon=epsilon, keep=keep, calibration=calibration)
    # The finite difference subtracts two nearly equal derivatives.
    assert_close(found, expected, 1e-10 if epsilon is None else 1e-9)


NETWORKS = {
    "smooth": lambda: _smooth(nn.GELU),
    "linear in its weights": lambda: nn.Sequential(nn.Linear(3, 2)),
    "resnet20": lambda: pathex.models.create("resnet20", width=4, num_classes=3, in_channels=3),
    "vit": small_timm.vit,
    "swin": small_timm.swin,
    "convnext": small_timm.convnext,
}


@pytest.mark.parametrize("name", ["smooth", "linear in its weights"])
@pytest.mark.parametrize("epsilon", [0.05, None], ids=["difference", "exact"])
def test_ntk_sap_is_the_derivative_by_the_mask(epsilon, name):
    """Torch's rules give a wrong derivative of the forward derivative of a LayerNorm."""
    model = NETWORKS[name]().double()
    x = torch.randn(4, 3, generator=draw(model, 2), dtype=torch.float64)
    redraw, theta, direction = drawn(model, x, None)
    objective = kernels.sap_objective(model, x, theta, direction, epsilon, None, "running")
    options = {"exact": True} if epsilon is None else {"epsilon": epsilon}
    found = pathex.score(model, "ntk-sap", x, inputs="data", redraw=redraw, **options)
    # Central differences with a step of 1e-5: their error is its square, and rounding of 1e-16 / 1e-5.
    assert_close(found, kernels.differences_by_mask(objective, theta), 1e-7)


STEPS = {"smooth": (1e-3, 1e-4, 1e-5), "vit": (1e-3, 1e-4, 1e-5), "resnet20": (1e-7, 1e-8)}


@pytest.mark.parametrize("name", STEPS)
def test_ntk_sap_converges_to_its_exact_limit(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[name]().double()
        x = torch.randn(4, *((3,) if name == "smooth" else (3, 16, 16)), dtype=torch.float64)
    exact = pathex.score(model, "ntk-sap", x, exact=True)
    errors = []
    for epsilon in STEPS[name]:  # those of ReLU are so small that no gate flips
        found = pathex.score(model, "ntk-sap", x, epsilon=epsilon)
        parts = [(found[n] / epsilon**2 - exact[n]).norm() ** 2 for n in exact]
        errors.append(float((sum(parts) / sum(exact[n].norm() ** 2 for n in exact)) ** 0.5))
    assert errors[0] < 0.05
    # First order in epsilon: each step a tenth.
    assert all(0.05 * before < after < 0.2 * before for before, after in itertools.pairwise(errors))


def test_every_round_has_its_own_standard_normal_inputs():
    model, x, seen = nn.Sequential(nn.Linear(40, 3)), 7 + torch.randn(50, 40), []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))

    def inputs(**options):
        """Each input once, without the two images of a survey."""
        seen.clear()
        pathex.prune(model, "ntk-sap", sparsity=0.5, data=x, **options)
        return list({float(images.sum()): images for images in seen if len(images) > 2}.values())

    found = inputs(rounds=4)
    assert len(found) == 4
    # 8,000 normal numbers: the mean has a standard error of 0.011, the variance one of 0.016.
    together = torch.cat(found)
    assert abs(float(together.mean())) < 0.06 and abs(float(together.var()) - 1) < 0.08
    assert [float(a.sum()) for a in inputs(rounds=2, draws=2)] == [float(a.sum()) for a in found]
    assert all(torch.equal(a.sort(0).values, x.sort(0).values) for a in inputs(rounds=2, inputs="data"))


def test_ntk_sap_does_not_see_the_weights_but_their_spread():
    model, x = build("mlp", 42)
    before = pathex.score(model, "ntk-sap", x)
    with torch.no_grad():
        for name in prunable(model):
            weight = model.get_parameter(name)
            weight.copy_(weight.flatten().flip(0).view_as(weight))
    assert_close(pathex.score(model, "ntk-sap", x), before, 1e-12)
    assert any(not torch.equal(pathex.score(model, "ntk-sap", x, seed=1)[name], before[name]) for name in before)


def test_draws_are_summed_before_the_absolute_value():
    model, x = build("residual", 43)
    options = {"inputs": "data", "scales": "stored", "epsilon": 0.1}
    sums = {}
    for number in (1, 2):
        redraw, theta, direction = drawn(model, x, None, number)
        objective = kernels.sap_objective(model, x, theta, direction, 0.1, None, "batch")
        ones = {name: torch.ones_like(weight) for name, weight in theta.items()}
        for name, derivative in torch.func.grad(objective)(ones).items():
            sums[name] = sums.get(name, 0) + derivative
    found = pathex.score(model, "ntk-sap", x, redraw=redraw, draws=2, **options)
    assert_close(found, {name: entry.abs() for name, entry in sums.items()})


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet20"])
@pytest.mark.parametrize("variant", KERNELS)
@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")  # scales that start at zero
def test_any_network(name, variant):
    method, options = KERNELS[variant]
    model, side = NETWORKS[name](), 32 if name == "convnext" else 16
    found = pathex.score(model, method, (torch.randn(3, 3, side, side), torch.tensor([0, 1, 2])), **options)
    for weight, score in found.items():
        assert torch.isfinite(score).all() and (score >= 0).all() and score.any(), weight


def test_a_problem_of_a_later_round_draws_anew():
    model, x = build("mlp", 61)
    own = {name: model.get_parameter(name) for name in prunable(model)}
    problem = Problem(model, own, [(x, None)])
    for name, options in (("ntk-sap", {}), ("ntk-diagonal", {"projections": 2})):
        method = find(name).having(options)
        first, same = method(problem), method(replace(problem, memo={}))
        later = method(replace(problem, round=2))
        assert all(torch.equal(first[weight], same[weight]) for weight in own)
        assert all(not torch.equal(first[weight], later[weight]) for weight in own)
