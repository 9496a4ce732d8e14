"""The suite ``scale``."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pathex.bench import ERROR, Bench, find, measure
from pathex.bench import _scale as scale
from pathex.bench._problem import Images, network
from pathex.bench._processes import CaseFailed, Fresh
from pathex.bench._scale import fits
from pathex.errors import InvalidInput

CPU = torch.device("cpu")
SUITE = find("scale")
BENCH = Bench(CPU, 1, 0, 1)


class PowerLaw(Fresh):
    """A machine on which seconds grow with the 1.5th power of images and the square of rounds, memory with neither."""

    def __init__(self, _: object, case: Any, *, threads: int) -> None:
        self.case = case

    def receive(self) -> dict[str, Any]:
        if self.case.model == "resnet44":
            raise CaseFailed("too large")
        depth = int(self.case.model[-2:])
        return {
            "parameters": depth,
            "multiply_adds": depth**2,
            "rounds": self.case.rounds or 1,
            "round_seconds": float(self.case.images.count) ** 1.5 * depth,
            "seconds": float(self.case.rounds) ** 2,
            "tensor_mib": 7.0 * depth,
            "budget_mib": 150.0,
            "within_budget": 7.0 * depth <= 150,
        }

    def end(self) -> None:
        pass


def test_exponents_are_fitted_by_series(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scale, "Fresh", PowerLaw)
    options = {"models": ("resnet20", "resnet32", "resnet44"), "image_counts": (1, 2, 4), "round_counts": (2, 4)}
    outcome = measure(SUITE, BENCH, tmp_path, options)
    rows = outcome.rows[outcome.rows["kind"] == "fit"].set_index("against")
    assert rows.index.tolist() == ["parameters", "images", "rounds"]
    assert rows["time_exponent"].tolist() == [1.0, 1.5, 2.0]
    assert rows["memory_exponent"].tolist()[:2] == [1.0, 0.0]
    assert rows.loc["parameters", "work_exponent"] == 0.5
    assert [row[ERROR] for row in outcome.failed] == ["too large"]
    assert outcome.summary[1] == "resnet20: seconds grow with images^1.50, peak memory with images^0.00"
    assert outcome.summary[-1] == "peak memory within the budget of 150 MiB: 6 of 7 cases"


def test_one_size_has_no_exponent() -> None:
    row = {"against": "images", "series": "a", "method": "px", "images": 2, "round_seconds": 1.0, "tensor_mib": 1.0}
    assert list(fits([row, row])) == [] == list(fits([]))


def test_series_are_networks_that_differ_in_size() -> None:
    cases = scale._cases(BENCH, SUITE.defaults)
    series = {case.series: [] for case in cases if case.against == "parameters"}
    for case in cases:
        if case.against == "parameters":
            series[case.series].append(case.model)
    assert list(series) == ["resnet", "timm:vit", "torchvision:resnet"]
    assert series["resnet"] == ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]
    assert [case.images.count for case in cases if case.against == "images"] == [25, 50, 100, 200, 400]
    assert [case.rounds for case in cases if case.against == "rounds"] == [10, 20, 50, 100]


def test_vision_transformers_are_made_for_the_size_of_the_images() -> None:
    model, images = network("timm:vit_tiny_patch16_224", Images(1, 32, 3), 0, CPU)
    x, y = images.drawn(0, CPU)
    assert model(x).shape == (1, 3) and y.tolist() == [0]
    again, _ = network("timm:vit_tiny_patch16_224", Images(1, 32, 3), 0, CPU)
    assert torch.equal(model.head.weight, again.head.weight)


@pytest.mark.parametrize(("name", "size"), [("resnet20", 32), ("resnet18_tiny", 64), ("torchvision:resnet18", 224)])
def test_images_have_the_size_a_network_is_for(name: str, size: int) -> None:
    state = torch.get_rng_state()
    assert network(name, Images(1, 0, 2), 0, CPU)[1].size == size
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "at least 1, got 0"),
        ({"image_counts": (5, -1)}, "at least 1, got -1"),
        ({"image_size": -1}, "--image-size"),
        ({"sparsity": 2.0}, "--sparsity"),
        ({"method": "pxx"}, "unknown method"),
        ({"memory": "much"}, "memory must be"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        measure(SUITE, BENCH, tmp_path / "bench", options)
    assert not (tmp_path / "bench").exists()


def test_cases_in_fresh_processes(tmp_path: Path) -> None:
    options = {"models": ("resnet20",), "images": 1, "image_counts": (), "round_counts": (2,), "method": "magnitude"}
    outcome = measure(SUITE, BENCH, tmp_path, {**options, "memory": "1KiB"})
    assert outcome.failed == []
    frame = pd.read_csv(tmp_path / "scale.csv")
    assert frame["parameters"].tolist() == [272_474] * 2  # with biases and normalisation
    assert frame["weights_mib"].tolist() == [round(4 * 270_896 / 2**20, 1)] * 2
    assert not frame["within_budget"].any()  # the weights alone are more than a KiB
    assert frame["round_seconds"].gt(0).all() and frame["seconds"].notna().tolist() == [False, True]
    assert (tmp_path / "scale.svg").exists()
