"""Scores equal their slow twins, without any normalisation."""

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import pathex
from brute_force import gradients, kernels, scores
from brute_force.cases import CASES, Wired, assert_close, build, draw, random_mask
from brute_force.gradients import labelled

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


def _fisher(model, batches, keep, calibration):
    return kernels.fisher_diagonal(model, *batches[0], keep, calibration)


def _released_px(model, batches, keep, calibration):
    return scores.px_cvpr24(model, [x for x, _ in batches], keep)


def _predicted(model, x, keep, calibration):
    return kernels.fisher_diagonal(model, x, None, keep, calibration)


TWINS = {
    "px": Twin("px", _images(scores.px), 26),
    "px-literal": Twin("px-literal", _images(scores.px_literal), 26),
    "synflow-l2": Twin("synflow-l2", _images(scores.synflow_l2), 26),
    "synflow": Twin("synflow", _images(scores.synflow), 22, NONE),
    "released": Twin("synflow", _images(scores.synflow_released), 23, NONE, RELU, options={"shifts": "released"}),
    "px-cvpr24": Twin("px-cvpr24", _released_px, 24, NONE, RELU, (3, 2)),
    **{method: Twin(method, twin, 31, ALL, LOSS, (3, 2)) for method, twin in gradients.TWINS.items()},
    "ntk-diagonal": Twin("ntk-diagonal", _images(kernels.ntk_diagonal), 31, ALL),
    "fisher-diagonal": Twin("fisher-diagonal", _fisher, 32, ALL, FISHER, (4,)),
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


def test_px_cvpr24_squares_the_listed_norms():
    model, x = build("residual", seed=25)
    globs = ["3.branches.1.*"]
    expected = scores.px_cvpr24(model, [x], None, globs)
    assert_close(pathex.score(model, "px-cvpr24", x, squared_norms=globs), expected)
    plain = scores.px_cvpr24(model, [x])
    assert any(not torch.allclose(plain[name], expected[name]) for name in expected)


def _of_one_gradient():
    """Autograd hands out the gradients of both weights as one tensor."""
    layers = {name: nn.Linear(3, 3, bias=False) for name in ("first", "second")}
    return Wired(lambda net, x: nn.functional.linear(x, net.first.weight + net.second.weight), **layers)


def _smooth(activation):
    return nn.Sequential(nn.Linear(3, 5), activation(), nn.LayerNorm(5), nn.Linear(5, 3))


@pytest.mark.parametrize(
    "make", [_of_one_gradient, *(partial(_smooth, a) for a in (nn.GELU, nn.SiLU, nn.Tanh, nn.Softplus))]
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
