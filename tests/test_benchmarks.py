"""The benchmark scripts: the plain implementation computes what it claims, and the scripts run."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pathex
from pathex.errors import InvalidInput, UnknownName

FOLDER = Path(__file__).parents[1] / "benchmarks"
# The names that the released code takes for weights although they belong to normalisation layers.
SQUARED = ["*.shortcut.1"]


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


@pytest.fixture
def plain() -> ModuleType:
    return import_module("plain_px")


@pytest.fixture
def rounds() -> ModuleType:
    return import_module("rounds")


@pytest.fixture
def problem() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    model = pathex.models.CifarResNet(8, num_classes=4, width=3).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    return model, torch.randn(6, 3, 8, 8, dtype=torch.float64)


def test_plain_scores_are_those_of_pathex_up_to_one_factor(plain, problem):
    model, images = problem
    mask = pathex.Mask({name: torch.rand_like(p) > 0.3 for name, p in model.named_parameters() if p.dim() > 1})
    actual = plain.plain_scores(model, images, mask)
    expected = pathex.score(model, "px-cvpr24", images, mask=mask, squared_norms=SQUARED)
    assert actual.keys() == expected.keys()
    actual, expected = (torch.cat([scores[name].flatten() for name in scores]) for scores in (actual, expected))
    assert expected.sum() > 0
    torch.testing.assert_close(actual / actual.sum(), expected / expected.sum(), rtol=1e-8, atol=1e-16)


def test_plain_rounds_keep_what_pathex_keeps_and_leave_no_trace(plain, problem):
    model, images = problem
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    relu, numbers = F.relu, []
    mask = plain.plain_px(model, images, sparsity=0.7, rounds=3, on_round=numbers.append)
    result = pathex.prune(
        model, "px-cvpr24", sparsity=0.7, data=images, rounds=3, progress=False, squared_norms=SQUARED
    )
    assert {name: entry.bool().tolist() for name, entry in mask.items()} == {
        name: entry.tolist() for name, entry in result.mask.items()
    }
    assert numbers == [1, 2, 3]
    assert F.relu is relu
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_plain_keeps_everything_at_sparsity_zero(plain, problem):
    model, images = problem
    mask = plain.plain_px(model.float(), images.float(), sparsity=0.0, rounds=2)
    assert all(entry.all() for entry in mask.values())


def test_labels_name_a_method_and_its_options(rounds):
    assert rounds.parse_case("px:redraw=true,calibration_images=7") == (
        "px",
        {"redraw": True, "calibration_images": 7},
    )
    assert rounds.parse_case("plain") == ("plain", {})
    with pytest.raises(UnknownName, match="pxx"):
        rounds.parse_case("pxx")
    with pytest.raises(InvalidInput, match="has no option 'speed'"):
        rounds.parse_case("px:speed=3")
    for variant in rounds.VARIANTS:
        rounds.parse_case(variant)


def test_ratios_are_to_the_plain_row_of_the_same_run(rounds):
    rows = [
        {"method": "plain", "cpu_seconds": 9.0, "round_seconds": 4.0, "tensor_mib": 100.0},
        {"method": "px", "cpu_seconds": 4.5, "round_seconds": 3.0, "tensor_mib": 25.0},
    ]
    frame = rounds.table(rows).set_index("method")
    assert frame.loc["px", ["time_ratio", "cpu_ratio", "memory_ratio"]].tolist() == [0.75, 0.5, 0.25]
    assert frame.loc["plain", ["time_ratio", "memory_ratio"]].tolist() == [1.0, 1.0]
    assert rounds.table(rows[1:])["time_ratio"].isna().all()


def test_bad_arguments_are_one_line(rounds, capsys):
    bad = {"--methods": ("pxx", "unknown method 'pxx'"), "--rounds": ("0", "at least 1"), "--model": ("r", "unknown")}
    for argv, message in (([flag, value], message) for flag, (value, message) in bad.items()):
        with pytest.raises(SystemExit, match="2"):
            rounds.main(argv)
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_one_round_in_fresh_processes_and_its_picture(tmp_path):
    out = tmp_path / "rows" / "tiny.csv"
    command = [sys.executable, FOLDER / "rounds.py", "--rounds", "1", "--images", "2", "--methods", "magnitude"]
    subprocess.run([*command, "--threads", "1", "--out", out], check=True, capture_output=True, timeout=300)
    frame = pd.read_csv(out)
    assert frame["method"].tolist() == ["plain", "magnitude"]
    assert frame["kept"].tolist() == [4876, 4876]  # of 270,896
    assert (frame["seconds"] >= frame["round_seconds"]).all()
    assert frame["time_ratio"].notna().all()
    assert (frame["tensor_mib"] > 1).all()  # three copies of 270,896 weights, or their masks and scores
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["settings"]["rounds"] == 1
    assert about["environment"]["threads"] == 1
    import_module("plot_rounds").main([str(out)])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.parent.iterdir()) == ["tiny.csv", "tiny.json", "tiny.png"]
