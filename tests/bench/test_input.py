"""The suite ``input``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pathex.bench import Bench, find, measure
from pathex.bench._input import _with_ratios
from pathex.errors import InvalidInput

SUITE = find("input")
BENCH = Bench(torch.device("cpu"), 1, 0, 1)
TINY = {"images": 6, "width": 40, "height": 30, "image_size": 16, "batch_size": 4, "workers": (0,), "resident": 20}


def test_a_small_run(tmp_path: Path) -> None:
    outcome = measure(SUITE, BENCH, tmp_path, TINY)
    rows = outcome.rows
    assert not outcome.failed
    assert [file.name for file in outcome.files] == ["input.csv", "input.json", "input.png", "input.svg"]
    assert list(zip(rows["source"], rows["case"], rows["augment"], strict=True)) == [
        ("files", "decoding", "none"),
        ("files", "feed", "resized-crop"),
        ("files", "loader", "resized-crop"),
        *(("memory", "feed", kind) for kind in ("none", "flip", "crop-flip", "resized-crop")),
        ("memory", "loader", "crop-flip"),
    ]
    assert rows["images"].tolist() == [6] * 3 + [20] * 5
    assert (rows["images_per_second"] > 0).all()
    assert [line.partition(":")[0] for line in outcome.summary] == ["from files", "from memory"]


def test_ratios_are_to_cases_with_as_many_workers() -> None:
    def row(case: str, workers: int | None, rate: float, augment: str = "flip") -> dict[str, object]:
        return {"case": case, "workers": workers, "augment": augment, "images_per_second": rate}

    rows = _with_ratios(
        [
            row("decoding", 1, 100.0, "none"),
            row("feed", 1, 80.0),
            row("loader", 1, 40.0),
            row("decoding", 2, 200.0, "none"),
            row("feed", 2, 120.0),
            row("loader", 2, 60.0),
            row("feed", None, 600.0),
            row("feed", None, 900.0, "none"),
        ]
    )
    assert [each.get("of_decoding") for each in rows] == [1.0, 0.8, 0.4, 1.0, 0.6, 0.3, 3.0, 4.5]
    assert [each.get("of_loader") for each in rows] == [None, 2.0, 1.0, None, 2.0, 1.0, 10.0, None]


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    for place in ("train/a", "train/b", "val/a"):
        folder = tmp_path / "images" / place
        folder.mkdir(parents=True)
        for number in range(2):
            Image.fromarray(np.full((20, 24, 3), number, np.uint8)).save(folder / f"{number}.jpg")
    given = {**TINY, "folder": str(tmp_path / "images"), "augment": "flip"}
    rows = measure(SUITE, BENCH, tmp_path, given).rows
    assert rows["images"].tolist()[:3] == [4] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": (1, -1)}, "--workers must be at least 0, got -1"),
        ({"batch_size": 1}, "--batch-size must be at least 2, got 1"),
        ({"augment": "crop-flip"}, "--augment must be one of none, flip, resized-crop, got 'crop-flip'"),
        ({"folder": "nowhere"}, "no folder 'train'"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        measure(SUITE, BENCH, tmp_path, {**TINY, **options})
