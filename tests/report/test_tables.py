from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pathex.report._findings import headline, what_was_run
from pathex.report._records import read_all
from pathex.report._style import styles
from pathex.report._tables import commands, markdown, nested, runs_table, shared_settings, summary_table

MakeRun = Callable[..., Path]


def table_of(*folders: Path) -> pd.DataFrame:
    return runs_table(read_all(folders)[0])


def test_summary_has_one_row_a_method_and_sparsity(study: Path) -> None:
    summary = summary_table(table_of(study))
    assert len(summary) == 1 + 4 * 2
    assert set(summary["n"]) == {3}
    assert summary.iloc[0]["series"] == "dense" and summary.iloc[0]["density"] == 1
    at = summary[summary["sparsity"] == 0.982]
    assert at["mean_accuracy"].is_monotonic_decreasing
    assert (at["ci95_low"] < at["mean_accuracy"]).all() and (at["mean_accuracy"] < at["ci95_high"]).all()


def test_one_seed_shows_a_dash_for_the_interval(make_run: MakeRun) -> None:
    text = markdown(summary_table(table_of(make_run("px", test_accuracy=0.81234))))
    assert text.count("\n") == 3
    assert "| px | 0.9 | 1 | 81.23 % | — |" in text


def test_what_differs_names_the_series_and_what_does_not_differ_is_silent(make_run: MakeRun) -> None:
    folders = [make_run("px"), make_run("px", method_options={"redraw": True}), make_run("random"), make_run("dense")]
    assert set(table_of(*folders)["series"]) == {"px", "px (redraw=true)", "random", "dense"}


def test_an_option_of_one_method_does_not_rename_it(make_run: MakeRun) -> None:
    rows = table_of(make_run("px", method_options={"redraw": True}), make_run("random"), make_run("dense", rounds=3))
    assert set(rows["series"]) == {"px", "random", "dense"}


def test_unequal_training_shows_in_every_series(make_run: MakeRun) -> None:
    rows = table_of(make_run("px", epochs=4), make_run("dense", epochs=8))
    assert set(rows["series"]) == {"px (epochs=4)", "dense (epochs=8)"}


def test_commands_and_shared_settings_hold_every_setting(make_run: MakeRun) -> None:
    first, second = make_run("px", model_options={"width": 4}), make_run("random", 0.9, 1, model_options={"width": 4})
    records, _ = read_all([second, first])
    shared = shared_settings(records)
    assert shared["model_options.width"] == 4 and "seed" not in shared and "out" not in shared
    assert nested(shared)["model_options"] == {"width": 4}
    assert commands(records, shared, "s.yaml") == [
        "pathex run --config s.yaml --method random --seed 1",
        "pathex run --config s.yaml --method px --seed 0",
    ]


def test_mappings_and_lists_survive_the_command_line(make_run: MakeRun) -> None:
    records, _ = read_all([make_run("px", allocation={"fc.weight": 0.5}, milestones=[0.5]), make_run("px", seed=1)])
    [line] = [line for line in commands(records, {"method": 0, "model": 0, "data": 0}, "s") if "fc.weight" in line]
    assert """--allocation '{"fc.weight": 0.5}'""" in line and "--milestones '[0.5]'" in line


def test_headline_claims_a_gap_whose_intervals_are_apart(make_run: MakeRun) -> None:
    for seed in range(3):
        make_run("random", 0.9, seed, test_accuracy=0.70 + seed / 1000)
        folder = make_run("px", 0.9, seed, test_accuracy=0.80 + seed / 1000)
    said = headline(table_of(folder.parent))
    assert "px is 10.0 points more accurate than random (95 % interval 9.8 to 10.2)" in said
    assert "3 seeds each" in said and "no claim" not in said


@pytest.mark.parametrize("seeds", [1, 3])
def test_headline_claims_nothing_from_one_seed_or_overlap(make_run: MakeRun, seeds: int) -> None:
    for seed in range(seeds):
        make_run("random", 0.9, seed, test_accuracy=0.79 + seed / 50)
        folder = make_run("px", 0.9, seed, test_accuracy=0.80 + seed / 50)
    said = headline(table_of(folder.parent))
    assert "no claim" in said and "more accurate" not in said


def test_headline_says_when_random_wins_and_when_the_best_two_are_not_told_apart(make_run: MakeRun) -> None:
    for seed in range(3):
        for method, accuracy in (("px", 0.70), ("synflow", 0.701), ("random", 0.6)):
            folder = make_run(method, 0.9, seed, test_accuracy=accuracy + seed / 500)
    rows = table_of(folder.parent)
    assert "the highest mean of 3 methods" in headline(rows)
    assert headline(rows).endswith("between these two, no claim.")
    rows.loc[rows["method"] == "random", "test_accuracy"] += 0.2
    assert "no method has a higher mean than random pruning" in headline(rows)


def test_what_was_run_in_a_sentence(study: Path) -> None:
    assert what_was_run(table_of(study)) == (
        "4 pruning methods (magnitude, px, random and synflow) at sparsity 0.9 and 0.982 beside the dense network: "
        "resnet20 on fashion-mini, 3 seeds, 27 runs in all."
    )


def test_a_method_keeps_its_colour_and_series_of_one_method_differ_in_line() -> None:
    few = styles([("px", "px"), ("mine", "mine")])
    many = styles([("px", "px"), ("px", "px (redraw=true)"), ("other", "other"), ("random", "random")])
    assert few["px"].colour == many["px"].colour == many["px (redraw=true)"].colour
    assert many["px"].dash != many["px (redraw=true)"].dash
    assert len({style.colour for style in many.values()}) == 3
