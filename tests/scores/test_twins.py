"""Scores equal their slow twins, without any normalisation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pathex
from brute_force import gradients, kernels, scores
from brute_force.cases import CASES, Wired, assert_close, build, draw, random_mask
from brute_force.gradients import Batches, labelled

pytestmark = [
    # torch.func.jvp, which a twin uses, loads compiled rules when it is first called.
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning"),
    # Networks as small as these have dead units.
    pytest.mark.filterwarnings("ignore:all scores are zero:pathex.errors.PathexWarning"),
]

Scores = dict[str, Tensor]
Keep = dict[str, Tensor] | None
RELU = ["mlp", "vector-norm", "dilated", "residual", "max-pool", "average-branch", "transposed"]  # the released code's
LOSS = ["mlp", "vector-norm", "dilated", "residual", "max-pool", "average-branch", "depthwise", "shared"]
FISHER = ["mlp", "residual", "vector-norm", "max-pool", "shared"]
STATISTICS, ALL = ("batch", "running"), ("batch", "running", "train")


@dataclass(frozen=True)
class Twin:
    """The twin of a method, from the images, labels as they come in batches, a mask and a calibration."""

    method: str
    score: Callable[[nn.Module, Tensor, Batches, Keep, str], Scores]
    seed: int
    calibrations: Sequence[str | None] = STATISTICS
    cases: Sequence[str] = tuple(CASES)
    sizes: tuple[int, ...] = (3,)
    options: dict[str, Any] = field(default_factory=dict)


def _loss(method):
    twin = gradients.TWINS[method]
    return Twin(method, lambda m, x, b, keep, how: twin(m, b, keep, how), 31, ALL, LOSS, (3, 2))


def _fisher(labels):
    def score(model, x, batches, keep, calibration):
        return kernels.fisher_diagonal(model, x, batches[0][1] if labels == "given" else None, keep, calibration)

    return Twin("fisher-diagonal", score, 32, ALL, FISHER, (4,), {"labels": labels})


TWINS = {
    "px": Twin("px", lambda m, x, b, keep, how: scores.px(m, x, keep, how), 26),
    "px-literal": Twin("px-literal", lambda m, x, b, keep, how: scores.px_literal(m, x, keep, how), 26),
    "synflow-l2": Twin("synflow-l2", lambda m, x, b, keep, how: scores.synflow_l2(m, x, keep, how), 26),
    "synflow": Twin("synflow", lambda m, x, b, keep, how: scores.synflow(m, x, keep), 22, [None]),
    "synflow with released shifts": Twin(
        "synflow",
        lambda m, x, b, keep, how: scores.synflow_released(m, x, keep),
        23,
        [None],
        RELU,
        options={"shifts": "released"},
    ),
    "px-cvpr24": Twin(
        "px-cvpr24",
        lambda m, x, b, keep, how: scores.px_cvpr24(m, [images for images, _ in b], keep),
        24,
        [None],
        RELU,
        (3, 2),
    ),
    **{method: _loss(method) for method in gradients.TWINS},
    "ntk-diagonal": Twin("ntk-diagonal", lambda m, x, b, keep, how: kernels.ntk_diagonal(m, x, keep, how), 31, ALL),
    "fisher-diagonal": _fisher("given"),
    "fisher-diagonal of the model": _fisher("model"),
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
    how = {} if calibration is None else {"calibration": calibration}
    found = pathex.score(
        model, twin.method, batches, mask=None if keep is None else pathex.Mask(keep), **twin.options, **how
    )
    x = torch.cat([images for images, _ in batches])
    assert_close(found, twin.score(model, x, batches, keep, calibration or ""))


def test_px_cvpr24_squares_the_listed_norms():
    model, x = build("residual", seed=25)
    globs = ["3.branches.1.*"]
    expected = scores.px_cvpr24(model, [x], None, globs)
    assert_close(pathex.score(model, "px-cvpr24", x, squared_norms=globs), expected)
    plain = scores.px_cvpr24(model, [x])
    assert any(not torch.allclose(plain[name], expected[name]) for name in expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", ["mlp", "residual", "average-branch"])
def test_px_on_fresh_networks_of_several_seeds(case, seed):
    model, x = build(case, 100 + seed)
    keep = random_mask(model, 100 + seed)
    assert_close(pathex.score(model, "px", x, mask=pathex.Mask(keep)), scores.px(model, x, keep))


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
    """A segmentation of three classes, with unlabelled pixels and an image without any label."""
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)).double()
    generator = draw(model, 4)
    x = torch.randn(3, 1, 3, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (3, 2, 3), generator=generator)
    y[0, 0, 1], y[2] = 255, 255
    found = pathex.score(model, "fisher-diagonal", (x, y), labels=labels)
    assert_close(found, kernels.fisher_diagonal(model, x, y if labels == "given" else None))
