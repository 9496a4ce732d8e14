"""record, replay and replay_open, against the list of all paths."""

from functools import cache
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from brute_force.cases import CASES, build, masked, random_mask
from brute_force.expand import Graph
from brute_force.paths import flow
from pathex.paths import record, replay, replay_open

Calibration = Literal["batch", "running"]

every_case = pytest.mark.parametrize("case", CASES)
both_calibrations = pytest.mark.parametrize("calibration", ["batch", "running"])
with_and_without_mask = pytest.mark.parametrize("pruned", [False, True], ids=["dense", "masked"])


@cache
def network(
    case: str, pruned: bool, calibration: Calibration
) -> tuple[nn.Module, Tensor, dict[str, Tensor], dict[str, Tensor], Graph]:
    """Model, images, its masked parameters, the parameters of its ones-network, and its scalars."""
    model, x = build(case, 26)
    mask = random_mask(model, 26) if pruned else {}
    theta = masked(model, mask)
    ones = {name: torch.ones_like(entry) for name, entry in theta.items()}
    graph = Graph(model, x, theta, calibration=calibration)
    return model, x, theta, ones | {name: keep.double() for name, keep in mask.items()}, graph


@every_case
@both_calibrations
@with_and_without_mask
def test_record_is_the_forward_pass(case: str, calibration: Calibration, pruned: bool) -> None:
    model, x, theta, _, graph = network(case, pruned, calibration)
    actual = record(model, x, tensors=theta, calibration=calibration).output
    torch.testing.assert_close(actual.flatten(1), graph.output(), rtol=1e-10, atol=1e-12)


@every_case
@both_calibrations
@with_and_without_mask
@pytest.mark.parametrize("coefficients", ["plain", "squared", "ones"])
def test_replay_is_the_sum_over_gated_paths(
    case: str, calibration: Calibration, pruned: bool, coefficients: Literal["plain", "squared", "ones"]
) -> None:
    model, x, theta, ones, graph = network(case, pruned, calibration)
    tensors = ones if coefficients == "ones" else theta
    images = x if coefficients == "plain" else x**2
    recorded = record(model, x, tensors=theta, calibration=calibration)
    actual = replay(model, images, recorded, tensors=tensors, coefficients=coefficients)
    # The signs of plain paths cancel, so their sum may be small beside its terms.
    atol = 1e-11 if coefficients == "plain" else 0.0
    expected = flow(graph, coefficients, images, tensors)
    torch.testing.assert_close(actual.flatten(1), expected, rtol=1e-10, atol=atol, check_dtype=False)


@every_case
@both_calibrations
@with_and_without_mask
def test_replay_open_is_the_sum_over_all_paths(case: str, calibration: Calibration, pruned: bool) -> None:
    model, x, theta, _, graph = network(case, pruned, calibration)
    ones = torch.ones_like(x[:1])
    statistics = record(model, x, tensors=theta, calibration=calibration).statistics
    actual = replay_open(model, ones, statistics=statistics, tensors=theta)
    torch.testing.assert_close(actual.flatten(1), flow(graph, "open", ones, theta), rtol=1e-10, atol=0.0)


def test_recorded_statistics_can_be_used_for_other_images() -> None:
    model, x = build("residual", seed=12, images=4)
    calibrated = record(model, x, calibration="batch")
    alone = record(model, x[:1], calibration=calibrated.statistics)
    torch.testing.assert_close(alone.output, calibrated.output[:1], rtol=1e-10, atol=1e-12)
