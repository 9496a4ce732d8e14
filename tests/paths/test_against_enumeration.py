"""record, replay and replay_open, against the list of all paths."""

from functools import cache

import pytest
import torch

from brute_force.cases import CASES, build, masked, random_mask
from brute_force.expand import Graph
from brute_force.paths import flow
from pathex.paths import record, replay, replay_open


@cache
def network(case, pruned, calibration):
    """Model, images, its masked parameters, the parameters of its ones-network, its recording and its scalars."""
    model, x = build(case, 26)
    mask = random_mask(model, 26) if pruned else {}
    theta = masked(model, mask)
    ones = {n: torch.ones_like(entry) for n, entry in theta.items()} | {n: keep.double() for n, keep in mask.items()}
    recording = record(model, x, tensors=theta, calibration=calibration)
    return model, x, theta, ones, recording, Graph(model, x, theta, calibration=calibration)


@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("calibration", ["batch", "running"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reading", ["record", "plain", "squared", "ones", "open"])
def test_readings_are_sums_over_paths(reading, case, calibration, pruned):
    model, x, theta, ones, recording, graph = network(case, pruned, calibration)
    tensors, inputs = ones if reading == "ones" else theta, x if reading == "plain" else x**2
    if reading == "record":
        found, expected = recording.output, graph.output()
    elif reading == "open":
        inputs = torch.ones_like(x[:1])
        found = replay_open(model, inputs, statistics=recording.statistics, tensors=theta)
        expected = flow(graph, reading, inputs, theta)
    else:
        found = replay(model, inputs, recording, tensors=tensors, coefficients=reading)
        expected = flow(graph, reading, inputs, tensors)
    # The signs of plain paths cancel, so their sum may be small beside its terms.
    atol = {"record": 1e-12, "plain": 1e-11}.get(reading, 0.0)
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-10, atol=atol, check_dtype=False)


def test_recorded_statistics_can_be_used_for_other_images():
    model, x = build("residual", seed=12, images=4)
    calibrated = record(model, x, calibration="batch")
    alone = record(model, x[:1], calibration=calibrated.statistics)
    torch.testing.assert_close(alone.output, calibrated.output[:1], rtol=1e-10, atol=1e-12)
    assert list(alone.statistics) == list(calibrated.statistics)
