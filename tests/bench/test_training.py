"""The suite ``training``: its rows, on networks that train in a moment."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from pathex.bench._running import checked
from pathex.bench._suite import ERROR, Bench, find
from pathex.bench._training import side_by_side

SMALL = {"model": "resnet20", "images": 40, "batch_size": 20, "epochs": 1, "tickets": 0}


def measured(**options: object) -> pd.DataFrame:
    suite = find("training")
    bench = Bench(torch.device("cpu"), torch.get_num_threads(), 0, 2)
    return pd.DataFrame(list(suite.rows(bench, checked(suite, {**SMALL, **options}))))


def test_rows_of_one_ticket(tmp_path: Path) -> None:
    suite, frame = find("training"), measured()
    assert list(frame["case"]) == ["plain loop", "pathex, dense", "pathex, masked"] and ERROR not in frame
    assert (frame["epoch_low"] <= frame["epoch_seconds"]).all() and (
        frame["epoch_seconds"] <= frame["epoch_high"]
    ).all()
    assert frame["ratio"][0] == 1 and (frame["ratio"] > 0).all()
    assert frame["images_per_second"].tolist() == pytest.approx((40 / frame["epoch_seconds"]).tolist())
    suite.plot(frame, tmp_path / "training")
    assert (tmp_path / "training.png").stat().st_size > 1000 and (tmp_path / "training.svg").exists()
    lines = suite.summary(frame)
    assert len(lines) == 3 and "the mask costs" in lines[-1]


@pytest.mark.slow
def test_rows_of_several_tickets() -> None:
    frame = measured(tickets=2)
    assert list(frame["case"])[3:] == ["2 together", "2 processes"] and list(frame["tickets"])[3:] == [2, 2]
    assert ERROR not in frame and (frame["epoch_seconds"] > 0).all()


def test_a_case_that_fails_is_a_row_with_its_reason() -> None:
    frame = measured(precision="16-mixed")
    assert "16-mixed" in frame[ERROR][1] and frame["epoch_seconds"].isna().tolist() == [False, True, True]
    assert find("training").summary(frame) == []


def test_rates_are_counted_while_all_are_at_work() -> None:
    # The second begins at 2 and the first ends at 4: two epochs of one in 2 s, one of the other in 1.5 s.
    assert side_by_side([[1, 2, 3, 4], [2, 3.5, 5]]) == pytest.approx(1 + 1 / 1.5)
    assert side_by_side([[1, 2], [3, 4]]) is None
