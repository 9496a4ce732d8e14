"""The scores of the paths family, against their slow twins: equal, without any normalisation."""

import pytest
import torch
from torch import Tensor, nn

import pathex
from brute_force import scores
from brute_force.cases import CASES, build, random_mask

# The released code knows ReLU only.
RELU_CASES = ["mlp", "vector-norm", "dilated", "residual", "max-pool", "average-branch", "transposed"]

Keep = dict[str, Tensor] | None
with_and_without_mask = pytest.mark.parametrize("pruned", [False, True], ids=["dense", "masked"])


def network(case: str, seed: int, pruned: bool, images: int = 3) -> tuple[nn.Module, Tensor, Keep, pathex.Mask | None]:
    """Model, images, and the same mask as a plain mapping and as pathex has it."""
    model, x = build(case, seed, images)
    keep = random_mask(model, seed) if pruned else None
    return model, x, keep, None if keep is None else pathex.Mask(keep)


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(actual) == sorted(expected)
    assert any(score.abs().max() > 0 for score in expected.values())
    for name, score in expected.items():
        # Relative to the layer: cancelling terms leave rounding in single entries.
        floor = 1e-12 * score.abs().max().item()
        torch.testing.assert_close(actual[name], score, rtol=1e-10, atol=floor)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("calibration", ["batch", "running"])
@pytest.mark.parametrize("method", ["px", "px-literal", "synflow-l2"])
@with_and_without_mask
def test_squared_paths(case: str, calibration: str, method: str, pruned: bool) -> None:
    model, x, keep, mask = network(case, 26, pruned)
    twin = {"px": scores.px, "px-literal": scores.px_literal, "synflow-l2": scores.synflow_l2}[method]
    assert_equal(pathex.score(model, method, x, mask=mask, calibration=calibration), twin(model, x, keep, calibration))


@pytest.mark.parametrize("case", CASES)
@with_and_without_mask
def test_synflow(case: str, pruned: bool) -> None:
    model, x, keep, mask = network(case, 22, pruned)
    assert_equal(pathex.score(model, "synflow", x, mask=mask), scores.synflow(model, x, keep))


@pytest.mark.parametrize("case", RELU_CASES)
@with_and_without_mask
def test_synflow_with_released_shifts(case: str, pruned: bool) -> None:
    model, x, keep, mask = network(case, 23, pruned)
    actual = pathex.score(model, "synflow", x, mask=mask, shifts="released")
    assert_equal(actual, scores.synflow_released(model, x, keep))


@pytest.mark.parametrize("case", RELU_CASES)
@with_and_without_mask
def test_px_cvpr24_sums_over_the_batches_as_delivered(case: str, pruned: bool) -> None:
    model, x, keep, mask = network(case, 24, pruned, images=5)
    batches = [x[:3], x[3:]]
    assert_equal(pathex.score(model, "px-cvpr24", batches, mask=mask), scores.px_cvpr24(model, batches, keep))


def test_px_cvpr24_squares_the_listed_norms() -> None:
    model, x = build("residual", seed=25)
    globs = ["3.branches.1.*"]
    expected = scores.px_cvpr24(model, [x], None, globs)
    assert_equal(pathex.score(model, "px-cvpr24", x, squared_norms=globs), expected)
    plain = scores.px_cvpr24(model, [x])
    assert any(not torch.allclose(plain[name], expected[name]) for name in expected)


@pytest.mark.filterwarnings("ignore:all scores are zero")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", ["mlp", "residual", "average-branch"])
def test_px_on_fresh_networks_of_several_seeds(case: str, seed: int) -> None:
    model, x, keep, mask = network(case, 100 + seed, pruned=True)
    assert_equal(pathex.score(model, "px", x, mask=mask), scores.px(model, x, keep))
