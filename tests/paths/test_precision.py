"""Float32 is enough: finite scores and, from the same mask, the same kept weights as float64."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
import torchvision
from torch import nn

import pathex
from pathex.models import create

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield import_module("float32_trajectories")


def _narrow_resnet50() -> nn.Module:
    return torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=4
    )


# Name of the network: how it is made, side of an image, sparsity.
CASES: dict[str, tuple[Callable[[], nn.Module], int, float]] = {
    "resnet20": (lambda: create("resnet20", width=4), 16, 0.9),
    "resnet20-sparse": (lambda: create("resnet20", width=4), 16, 0.982),
    "vgg16_bn": (lambda: create("vgg16_bn", width=0.0625), 16, 0.982),
    "resnet50": (_narrow_resnet50, 32, 0.9),
}


@pytest.mark.parametrize("name", CASES)
def test_float32_keeps_what_float64_keeps(script: ModuleType, name: str) -> None:
    make, size, sparsity = CASES[name]
    rows = list(script.trajectory(script.Case(make, size, 6, 5, sparsity), name))
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]
    for row in rows:
        assert row["finite"]
        # One weight may change places with the next one where few are kept.
        assert row["same"] >= min(0.999, 1 - 1 / (row["density"] * row["weights"])) - 1e-6
    # Left alone, the two drift apart: each weight that differs changes what the next round sees.
    assert rows[-1]["free_jaccard"] > 0.5


@pytest.mark.parametrize("sparsity", [0.5, 0.98])
def test_a_deep_network_without_norms_does_not_underflow(script: ModuleType, sparsity: float) -> None:
    """The sum over paths of a chain in PyTorch's own initialization leaves float32: it is computed in float64 then."""
    rows = list(script.trajectory(script.Case(lambda: script.plain(20, 12), 8, 4, 4, sparsity), "plain"))
    assert all(row["finite"] and row["same"] >= 0.999 for row in rows)
    torch.manual_seed(0)
    scores = pathex.score(script.plain(20, 12), "px", torch.randn(4, 3, 8, 8))
    assert all(score.any() for score in scores.values())
    assert sum(float(score.sum()) for score in scores.values()) < 20 * 1e-10


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scores_do_not_depend_on_the_scale_of_the_weights(scale: float) -> None:
    """Far beyond float32 on both sides; every score is multiplied by the same power of the scale."""
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(6, 6, bias=False), nn.ReLU())))
    x = torch.randn(4, 6)
    scores = pathex.score(model, "px", x)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    for name, score in pathex.score(model, "px", x).items():
        # Rescaled float32 weights are rounded once each.
        torch.testing.assert_close(score.double(), scores[name].double() * scale**16, rtol=1e-4, atol=0.0)


def test_the_committed_rows_keep_the_promise(script: ModuleType) -> None:
    rows = pd.read_csv(FOLDER / "rows" / "float32_trajectories.csv")
    assert set(rows["network"]) == set(script.CASES)
    assert rows["finite"].all()
    assert rows["same"].min() >= 0.999
    last = rows.groupby("network").tail(1).set_index("network")
    assert all(last.loc[name, "round"] == case.rounds for name, case in script.CASES.items())


def test_the_script_writes_rows_and_environment(script: ModuleType, tmp_path: Path) -> None:
    case = script.Case(lambda: script.plain(3, 4), 8, 2, 2, 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "CASES", {"small": case})
        assert script.main(["--cases", "small", "--out", str(tmp_path / "new" / "rows.csv")]) == 0
        with pytest.raises(SystemExit, match="2"):
            script.main(["--cases", "other", "--out", str(tmp_path / "no.csv")])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["rows.csv", "rows.json"]
    assert not (tmp_path / "no.csv").exists()
    assert len(pd.read_csv(tmp_path / "new" / "rows.csv")) == 2
