from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from pathex.report._figures import Panel, _accuracy_curves, _accuracy_dots, _frame, draw
from pathex.report._records import read_all
from pathex.report._style import styles
from pathex.report._tables import runs_table

MakeRun = Callable[..., Path]


def panel_of(*folders: Path) -> Panel:
    records, _ = read_all(folders)
    runs = runs_table(records)
    look = styles(zip(runs["method"], runs["series"], strict=True))
    return Panel(runs, {record.folder.name: record for record in records}, look)


def test_every_run_lies_inside_the_frame_and_wide_intervals_do_not_blow_it_up(make_run: MakeRun) -> None:
    folders = [make_run("px", 0.9, seed, test_accuracy=0.8 + seed / 100) for seed in range(2)]
    low, high = _frame(panel_of(*folders))
    assert low < 80 and high > 81
    assert high - low < 8, "Student's interval of two seeds alone is 12.7 points wide"


def test_sparser_is_further_right_and_ticks_read_as_sparsity(study: Path) -> None:
    axes = _accuracy_curves(panel_of(study)).axes[0]
    left, right = axes.get_xlim()
    assert axes.get_xscale() == "log" and left > right
    assert [axes.xaxis.get_major_formatter()(place) for place in axes.get_xticks()] == ["0.9", "0.982"]


def test_dots_are_ordered_by_accuracy_with_dense_as_a_line(make_run: MakeRun) -> None:
    means = {"random": 0.6, "px": 0.8, "magnitude": 0.7, "dense": 0.9}
    folders = [make_run(method, test_accuracy=mean) for method, mean in means.items()]
    axes = _accuracy_dots(panel_of(*folders)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["random", "magnitude", "px"]
    assert axes.get_legend_handles_labels()[1] == ["dense (90.0)"]


def test_one_seed_draws_no_interval_and_the_caption_promises_none(make_run: MakeRun) -> None:
    picture = draw(panel_of(make_run("px"), make_run("random")))[0]
    assert "interval" not in picture.caption


def test_pictures_are_valid_and_carry_no_date(study: Path) -> None:
    for picture in draw(panel_of(study)):
        assert picture.png.startswith(b"\x89PNG")
        assert ElementTree.fromstring(picture.svg).tag.endswith("svg")
        assert b"<dc:date>" not in picture.svg


def test_drawing_leaves_the_settings_of_matplotlib_alone(study: Path) -> None:
    before = dict(mpl.rcParams)
    draw(panel_of(study))
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("epochs", [0, 1])
def test_training_curves_need_two_epochs(make_run: MakeRun, epochs: int) -> None:
    folder = make_run("px")
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(rows[:epochs]))
    assert [picture.name for picture in draw(panel_of(folder))] == ["accuracy"]
