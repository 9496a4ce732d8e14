"""Float32 is enough: finite scores and, from the same mask, the same kept weights as float64."""

from pathlib import Path

import pandas as pd
import pytest
from torchvision.models.resnet import Bottleneck, ResNet

from benchmarks import float32_trajectories
from benchmarks.float32_trajectories import Case, plain, trajectory
from pathex.models import CifarResNet, create

# The last two are deep networks without norms, whose sums over paths leave float32.
CASES = {
    "resnet8": Case(lambda: CifarResNet(8, width=6), 16, 6, 5, 0.9),
    "resnet8-sparse": Case(lambda: CifarResNet(8, width=6), 16, 6, 5, 0.982),
    "vgg16_bn": Case(lambda: create("vgg16_bn", width=0.0625), 16, 6, 3, 0.982),
    "resnet50": Case(lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=4), 32, 4, 3, 0.9),
    "plain": Case(lambda: plain(20, 12), 8, 4, 4, 0.5),
    "plain-sparse": Case(lambda: plain(20, 12), 8, 4, 4, 0.98),
}


@pytest.mark.parametrize("name", CASES)
def test_float32_keeps_what_float64_keeps(name):
    case = CASES[name]
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
