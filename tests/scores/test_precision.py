"""Float32 where it is enough: the weights kept are those of float64; and float64 where sums leave it."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

import pathex
from benchmarks import float32_trajectories
from benchmarks.float32_trajectories import Case, plain, trajectory
from brute_force.cases import perceptron
from pathex.masks import all_kept, prunable_weights
from pathex.models import CifarResNet, create
from pathex.scores import px_literal


def _mlp(width, depth, activation=nn.ReLU):
    torch.manual_seed(0)
    return perceptron(*[width] * (depth + 1), 3, activation=activation, bias=False)


def _images(*shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * scale


def _assert_as_in_float64(model, x):
    """With stored statistics, so that both precisions record the same gates."""
    expected = pathex.score(model.double(), "px-literal", x.double(), calibration="running")
    found = pathex.score(model.float(), "px-literal", x, calibration="running")
    for name, score in expected.items():
        assert score.any()
        torch.testing.assert_close(found[name], score, rtol=1e-4, atol=1e-6 * float(score.max()))


@pytest.fixture
def precisions(monkeypatch):
    """In which precisions networks of ones were computed."""
    seen = []
    run = px_literal.run_linear

    def spied(reading, inputs):
        if reading.tape is not None:  # with the gates of images
            seen.append(inputs[0].dtype)
        return run(reading, inputs)

    monkeypatch.setattr(px_literal, "run_linear", spied)
    return seen


NARROW = {
    "resnet": (lambda: pathex.models.CifarResNet(8, num_classes=3, width=4), _images(4, 3, 16, 16)),
    "perceptron": (lambda: _mlp(8, 3), _images(6, 8)),
    "tiny images": (lambda: _mlp(8, 3), _images(6, 8, scale=1e-12)),
    "huge images": (lambda: _mlp(8, 3), _images(6, 8, scale=1e12)),
    "slopes": (lambda: _mlp(8, 3, lambda: nn.LeakyReLU(0.1)), _images(6, 8)),
    "beyond float32 without a scale": (lambda: _mlp(64, 25), _images(3, 64)),
}


@pytest.mark.parametrize("name", NARROW)
def test_float32_is_enough(name, precisions):
    make, x = NARROW[name]
    _assert_as_in_float64(make(), x)
    assert precisions == [torch.float64, torch.float32]


def test_a_deep_network_does_not_fit(precisions):
    _assert_as_in_float64(_mlp(64, 35), _images(3, 64))  # 64^36 is beyond 1e60
    assert precisions == [torch.float64, torch.float64]


def test_steep_slopes_that_no_open_gate_foresees(precisions):
    # An open gate counts 1, such a slope 10,000.
    _assert_as_in_float64(_mlp(8, 10, lambda: nn.LeakyReLU(100.0)), _images(6, 8))
    assert precisions == [torch.float64, torch.float32, torch.float64]


def test_images_of_zeros():
    model = _mlp(8, 2)
    with pytest.warns(pathex.errors.PathexWarning, match="all scores are zero"):
        scores = pathex.score(model, "px-literal", torch.zeros(2, 8))
    assert not any(score.any() for score in scores.values())


def test_an_output_that_no_path_reaches_needs_no_images_in_float64(precisions):
    model, x = _mlp(8, 2), _images(6, 8)
    mask = pathex.Mask(all_kept(prunable_weights(model)))
    mask["4.weight"][1] = False
    scores = pathex.score(model, "px-literal", x, mask=mask, calibration="running")
    assert precisions == [torch.float32]
    assert not scores["4.weight"][1].any() and scores["4.weight"][0].any()


def test_an_output_behind_closed_gates_is_looked_at_once_in_float64(precisions):
    model, x = _mlp(8, 2), _images(6, 8).abs()
    with torch.no_grad():
        model.get_parameter("0.weight")[0] = -1.0  # closed for all images
    mask = pathex.Mask(all_kept(prunable_weights(model)))
    mask["2.weight"][0, 1:] = False
    mask["4.weight"][1, 1:] = False
    scores = pathex.score(model, "px-literal", x, mask=mask, calibration="running")
    assert precisions == [torch.float32, torch.float64]
    assert not scores["4.weight"][1].any() and scores["4.weight"][0].any()
    precisions.clear()
    pathex.prune(model, "px-literal", sparsity=0.5, data=x, mask=mask, rounds=4, progress=False, calibration="running")
    assert precisions.count(torch.float32) == 4 and precisions.count(torch.float64) == 1


# The last two are deep networks without norms, whose sums over paths leave float32.
TRAJECTORIES = {
    "resnet8": Case(lambda: CifarResNet(8, width=6), 16, 6, 5, 0.9),
    "resnet8-sparse": Case(lambda: CifarResNet(8, width=6), 16, 6, 5, 0.982),
    "vgg16_bn": Case(lambda: create("vgg16_bn", width=0.0625), 16, 6, 3, 0.982),
    "resnet50": Case(lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=4), 32, 4, 3, 0.9),
    "plain": Case(lambda: plain(20, 12), 8, 4, 4, 0.5),
    "plain-sparse": Case(lambda: plain(20, 12), 8, 4, 4, 0.98),
}


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_float32_keeps_what_float64_keeps(name):
    case = TRAJECTORIES[name]
    rows = list(trajectory(case, name))
    assert [row["round"] for row in rows] == list(range(1, case.rounds + 1))
    for row in rows:
        assert row["finite"]
        # One weight may change places with the next one where few are kept.
        one = 0 if name.startswith("plain") else 1 / (row["density"] * row["weights"])
        assert row["same"] >= min(0.999, 1 - one) - 1e-6
    # Left alone, the two drift apart: each weight that differs changes what the next round sees.
    assert rows[-1]["free_jaccard"] > 0.5 or name.startswith("plain")


def test_the_committed_rows_keep_the_promise():
    rows = pd.read_csv(Path(float32_trajectories.__file__).parent / "rows" / "float32_trajectories.csv")
    assert set(rows["network"]) == set(float32_trajectories.CASES)
    assert rows["finite"].all()
    assert rows["same"].min() >= 0.999
    last = rows.groupby("network").tail(1).set_index("network")
    assert all(last.loc[name, "round"] == case.rounds for name, case in float32_trajectories.CASES.items())
