import json
import math
import re
from dataclasses import replace
from io import StringIO
from itertools import product

import pandas as pd
import pytest
from scipy import stats

from pathex.experiments.report.findings import different_totals, headline, what_was_run
from pathex.experiments.report.panel import seeds_said
from pathex.experiments.report.records import read_all
from pathex.experiments.report.settings import DEFAULTS, commands, nested, series_settings, shared_settings, short
from pathex.experiments.report.tables import csv, difference, estimate, markdown, runs_table, summary_table
from pathex.figures import styles


def table_of(*folders):
    return runs_table(read_all(folders)[0])


def test_summary_has_one_row_a_method_and_sparsity_and_what_was_run_is_a_sentence(study, make_run):
    rows = table_of(study)
    summary = summary_table(rows)
    assert len(summary) == 1 + 4 * 2
    assert set(summary["n"]) == {3}
    assert summary.iloc[0]["series"] == "dense" and summary.iloc[0]["density"] == 1
    at = summary[summary["sparsity"] == 0.982]
    assert at["mean"].is_monotonic_decreasing
    assert (at["ci95_low"] < at["mean"]).all() and (at["mean"] < at["ci95_high"]).all()
    assert what_was_run(rows) == (
        "4 pruning methods (magnitude, px, random and synflow) at sparsity 0.9 and 0.982 beside the dense network: "
        "resnet20 on fashion-mini, 3 seeds, 27 runs in all."
    )
    rows = table_of(make_run("px"), make_run("dense"), make_run("small-dense"))
    beside = "1 pruning method (px) at sparsity 0.9 beside the dense network and the small dense network: "
    assert what_was_run(rows).startswith(beside)
    assert what_was_run(table_of(make_run("dense", 0.9, 1))).startswith("Dense training: ")


def test_runs_of_one_seed_are_one_repeat(make_run):
    values = {0: [0.5, 0.7], 1: [0.8]}
    for seed, found in values.items():
        for number, value in enumerate(found):
            make_run("px", 0.9, seed, test_accuracy=value, memory=f"{number + 1}GiB")
            make_run("random", 0.9, seed, test_accuracy=value - 0.1 - seed / 10, memory=f"{number + 1}GiB")
    folder = make_run("dense", 0.9, 0, test_accuracy=0.9).parent
    runs = table_of(folder)
    [row] = [row for row in summary_table(runs).to_dict("records") if row["method"] == "px"]
    assert row["n"] == 2 and row["mean"] == pytest.approx((0.6 + 0.8) / 2)
    assert (row["ci95_low"], row["ci95_high"]) == (0.0, 1.0)  # t(1) = 12.7 times 0.1: wider than what there is
    assert seeds_said(runs) == "n = 1 to 2 seeds"
    assert "no claim" in headline(runs)
    text = markdown(summary_table(table_of(make_run("snip", test_accuracy=0.81234))))
    assert text.count("\n") == 3
    assert "| snip | 0.9 | 1 | 81.23 % | — |" in text


def test_methods_that_count_different_weights_are_told_apart(make_run):
    make_run("dense", 0.9, 0, total=9000)
    make_run("random", 0.9, 0)
    folder = make_run("snip", 0.9, 0)
    assert different_totals(table_of(folder.parent)) == ""
    make_run("px", 0.9, 0, total=7500)
    said = different_totals(table_of(folder.parent))
    assert "px of 7,500; random and snip of 7,984" in said and "off_path" in said


def test_commands_and_shared_settings_hold_every_setting(make_run):
    first, second = make_run("px", model_options={"width": 4}), make_run("random", 0.9, 1, model_options={"width": 4})
    records, _ = read_all([second, first])
    shared = shared_settings(records)
    assert shared["model_options.width"] == 4 and "seed" not in shared and "out" not in shared
    assert nested(shared)["model_options"] == {"width": 4}
    assert commands(records, shared, "s.yaml") == [
        "pathex run --config s.yaml --method random --seed 1",
        "pathex run --config s.yaml --method px --seed 0",
    ]
    records, _ = read_all([make_run("px", allocation={"fc.weight": 0.5}, milestones=[0.5])])
    [line] = commands(records, {"method": 0, "model": 0, "data": 0}, "s")
    assert """--allocation '{"fc.weight": 0.5}'""" in line and "--milestones '[0.5]'" in line


def test_headline_says_when_random_wins_and_when_the_best_two_are_not_told_apart(make_run):
    for seed in range(3):
        for method, accuracy in (("px", 0.70), ("synflow", 0.701), ("random", 0.6)):
            folder = make_run(method, 0.9, seed, test_accuracy=accuracy + seed / 500)
    rows = table_of(folder.parent)
    assert "the highest mean of 3 methods" in headline(rows)
    assert "no claim" not in headline(rows)  # 0.1 points, in every seed
    rows.loc[(rows["method"] == "px") & (rows["seed"] == 0), "value"] += 0.01
    assert headline(rows).endswith("Between px and synflow, no claim.")
    rows.loc[rows["method"] == "random", "value"] += 0.2
    assert "no method has a higher mean than random pruning" in headline(rows)


def test_every_sparsity_at_which_methods_are_apart_is_told(make_run):
    means = {0.5: (0.70, 0.60, 0), 0.8: (0.60, 0.59, 0.05), 0.9: (0.45, 0.55, 0), 0.95: (0.40, 0.39, 0.05)}
    for (sparsity, (px, random, spread)), seed in product(means.items(), range(3)):
        make_run("px", sparsity, seed, test_accuracy=px + seed / 100 + spread * (0, 1, -1)[seed])
        folder = make_run("random", sparsity, seed, test_accuracy=random + seed / 100)
    said = headline(table_of(folder.parent))
    chance = "which may be chance (95 % interval -11.4 to 13.4, 3 seeds in common): no claim."
    assert said.startswith(f"At sparsity 0.95: px 41.0 %, random 40.0 %, {chance}")
    assert "At sparsity 0.9, no method has a higher mean than random pruning. At sparsity 0.9, random is 10.0" in said
    assert "At sparsity 0.5, px is 10.0 points above random" in said and "0.8" not in said


@pytest.mark.parametrize("changes", [{"epochs": 400}, {"allocation": "erk"}, {"batch_size": 7, "lr": 0.5}])
def test_runs_of_other_settings_are_not_compared(make_run, changes):
    own = {"px": changes, "random": {}, "snip": {"rounds": 7, "narrow": 3}}
    for seed, (method, value) in product(range(3), (("px", 0.9), ("random", 0.5), ("snip", 0.7))):
        folder = make_run(method, 0.9, seed, test_accuracy=value + seed / 1000, **own[method])
    said = headline(table_of(folder.parent))
    assert re.search(r"^At sparsity 0.9, snip (\S+ )?is 20.0 points above random", said) and "px" not in said
    alone = headline(table_of(*(path for path in folder.parent.iterdir() if path.name[:4] != "snip")))
    assert "nothing to compare with" in alone and "points above" not in alone


def test_runs_of_changed_code_are_told_apart_and_those_of_other_methods_are_compared_with_both(make_run):
    folders = [make_run(method, seed=seed) for method in ("mine:score", "px") for seed in (0, 1)]
    for folder, digest in zip(folders[:2], ("0123456789", "abcdef0123"), strict=True):
        (folder / "inputs.json").write_text(json.dumps({"module 'mine'": digest, "data 'x'": digest}), encoding="utf-8")
    table = table_of(*folders)
    assert set(table["series"]) == {"mine:score (module 'mine'=01234567)", "mine:score (module 'mine'=abcdef01)", "px"}
    assert "mine:score" in headline(table) and "nothing to compare with" not in headline(table)
    of_model = [make_run("px", seed=seed, model="mine:net") for seed in (0, 1)]
    for folder, digest in zip(of_model, ("0123456789", "abcdef0123"), strict=True):
        (folder / "inputs.json").write_text(json.dumps({"module 'mine'": digest}), encoding="utf-8")
    assert set(table_of(*of_model)["series"]) == {"px (module 'mine'=01234567)", "px (module 'mine'=abcdef01)"}
    assert "nothing to compare with" in headline(table_of(*of_model))


@pytest.mark.parametrize(("classes", "chance"), [(["a", "b"], 0.5), (list("abcd"), 0.25), (None, None)])
def test_chance_is_a_constant_guess(make_run, classes, chance):
    folder = make_run("px", 0.9, **({} if classes is None else {"classes": classes}))
    runs = table_of(folder)
    assert runs["chance"].dropna().tolist() == ([] if chance is None else [chance])
    assert ("chance" in csv(runs)) == ("chance" in csv(summary_table(runs))) == (chance is not None)
    assert "protocol" not in csv(runs)


def test_a_method_keeps_its_colour_and_series_of_one_method_differ_in_line():
    few = styles([("px", "px"), ("mine", "mine")])
    many = styles([("px", "px"), ("px", "px (redraw=true)"), ("other", "other"), ("random", "random")])
    assert few["px"].colour == many["px"].colour == many["px (redraw=true)"].colour
    assert many["px"].dash != many["px (redraw=true)"].dash
    assert len({style.colour for style in many.values()}) == 3
    names = ("dense", "px", "random", "imp", "magnitude-after-training", "small-dense", "rigl", "set", "synflow-l2")
    alone = {name: styles([(name, name)])[name].colour for name in names}
    together = styles([(name, name) for name in (*names, "mine")])
    assert alone == {name: together[name].colour for name in names}
    assert len(set(alone.values())) == len(names)


def test_names_lose_the_folders_of_their_paths_and_older_folders_mean_the_defaults_of_today():
    known = {
        "npz:/data/cifar10.npz": "npz:cifar10.npz",
        "/w/file.pth": "file.pth",
        "imagefolder:/a/b/": "imagefolder:b",
    }
    known |= {name: name for name in ("cifar10", "timm:resnet18")}
    assert {name: short(name) for name in known} == known
    assert DEFAULTS["epochs"] == 160 and DEFAULTS["narrow"] == 0 and not {"out", "device"} & set(DEFAULTS)


def test_columns_bear_the_name_of_the_metric_and_a_transfer_run_counts_by_its_tasks(make_run):
    rows = table_of(make_run("px", test_accuracy=0.5), make_run("snip", metric="miou", test_miou=0.25))
    table = pd.read_csv(StringIO(csv(rows))).set_index("method")
    assert table.loc["px", "test_accuracy"] == 0.5 and table.loc["snip", "test_miou"] == 0.25
    assert table["test_accuracy"].isna().tolist() == table["test_miou"].notna().tolist()
    assert not {"value", "parameters", "zero_shot"} & set(table.columns)
    summary = pd.read_csv(StringIO(csv(summary_table(rows)))).set_index("method")
    assert summary.loc["px", "mean_accuracy"] == 0.5 and summary.loc["snip", "mean_miou"] == 0.25
    text = markdown(summary_table(rows))
    assert "| test accuracy |" in text and "| mean IoU |" in text and text.count("\n\n") == 1
    rows = table_of(make_run("px", weights=None), make_run("px", weights="mocov2:w.pth"))  # two starts, two experiments
    assert rows["series"].tolist() == ["px", "px"] and rows["weights"].tolist() == ["", "mocov2:w.pth"]
    assert len(summary_table(rows)) == 2
    tasks = [{"task": 1, "zero_shot": 0.1, "fine_tuned": 0.5}, {"task": 2, "zero_shot": 0.3, "fine_tuned": 0.7}]
    [row] = table_of(make_run("px", 0.9, 1, tasks=tasks)).to_dict("records")
    assert (row["task"], row["metric"]) == ("transfer", "accuracy")
    assert (row["zero_shot"], row["fine_tuned"], row["value"]) == pytest.approx((0.2, 0.6, 0.6))
    [row] = table_of(make_run("snip", 0.9, 1, tasks=tasks, test_accuracy=0.9)).to_dict("records")
    assert row["value"] == 0.9 and "| 20.00 % | 60.00 % |" in markdown(summary_table(pd.DataFrame([row])))


REDRAW, DENSE = {"method_options": {"redraw": True}}, ("dense", "small-dense")
TODAY = {name: DEFAULTS[name] for name in ("narrow", "kernel_every", "loss", "remedy", "dynamic")}
TODAY |= {"devices": 2, "strategy": "ddp", "logger": "wandb", "augment_options": {}}


@pytest.mark.parametrize(
    ("runs", "series"),
    [
        ([("px", {}), ("px", REDRAW), ("random", {}), ("dense", {})], {"px", "px (redraw=true)", "random", "dense"}),
        ([("px", REDRAW), ("random", {}), ("dense", {"rounds": 3})], {"px", "random", "dense"}),
        ([("px", {"epochs": 4}), ("dense", {"epochs": 8})], {"px (epochs=4)", "dense (epochs=8)"}),
        ([("px", {}), ("px", {"seed": 1, **TODAY})], {"px"}),
        ([("px", {"kernel_every": 1}), ("px", {"seed": 1}), ("random", {"kernel_images": 9})], {"px", "random"}),
        (
            [
                ("px", {"sanity": "none", "dynamic": "none"}),
                ("px", {"sanity": "shuffle"}),
                ("random", {"dynamic": "rigl"}),
                ("random", {"dynamic": "set"}),
                ("px", {"dynamic": "set", "dynamic_options": {"every": 10}}),
                ("small-dense", {"allocation": "erk"}),
                ("dense", {"allocation": "erk", "sanity": "reinit"}),
            ],
            {*("px", "px (sanity=shuffle)", "rigl", "set (from=random)", "set (every=10, from=px)"), *DENSE},
        ),
    ],
)
def test_what_differs_names_the_series_and_what_does_not_differ_is_silent(make_run, runs, series):
    rows = table_of(*(make_run(method, **changes) for method, changes in runs))
    assert len(rows) == len(runs) and set(rows["series"]) == series
    assert "rigl" not in series or rows.set_index("series").loc["rigl", "method"] == "rigl"


@pytest.mark.parametrize(
    ("random", "px", "step", "seeds", "metric", "expected"),
    [
        (0.70, 0.80, 0.001, 3, "accuracy", "px is 10.1 points above random .95 % interval 9.9 to 10.3, 3 seeds"),
        (0.30, 0.40, 0.001, 3, "miou", "^In mean IoU at sparsity 0.9, px is 10.1 points above random"),
        (0.79, 0.80, 0.02, 1, "accuracy", "with 1 seed in common: no claim"),
        (0.79, 0.80, 0.02, 3, "accuracy", "which may be chance .*: no claim"),
    ],
)
def test_headline_claims_a_gap_that_all_seeds_tell(make_run, random, px, step, seeds, metric, expected):
    for seed in range(seeds):  # which differ by more than methods do
        make_run("random", 0.9, seed, metric=metric, **{f"test_{metric}": random + seed / 20})
        folder = make_run("px", 0.9, seed, metric=metric, **{f"test_{metric}": px + seed / 20 + seed * step})
    said = headline(table_of(folder.parent))
    assert re.search(expected, said)
    assert ("no claim" in said) == ("no claim" in expected)


def test_intervals_and_differences_of_three_values_and_of_one():
    found, alone = estimate([0.80, 0.82, 0.84]), estimate([0.8])
    assert found.mean == pytest.approx(0.82)
    assert found.half_width == pytest.approx(4.3027 * 0.02 / math.sqrt(3), rel=1e-4)
    assert found.low < 0.82 < found.high
    assert all(map(math.isnan, (alone.low, alone.half_width, alone.high)))
    assert not alone.has_sign and found.has_sign and not estimate([-0.1, 0.1, 0.2]).has_sign
    first, second = pd.Series({0: 0.9, 1: 0.7, 2: 0.85}), pd.Series({2: 0.8, 0: 0.89, 5: 0.1})
    gap = difference(first, second)
    assert gap.n == 2 and gap.mean == pytest.approx(0.03)  # of seeds 0 and 2
    assert gap.half_width == pytest.approx(stats.t.ppf(0.975, 1) * 0.02)
    assert difference(first, first).half_width == 0 and not difference(first, first).has_sign
    apart = difference(first, pd.Series({7: 0.1}))
    assert apart.n == 0 and math.isnan(apart.mean) and not apart.has_sign


def test_a_summary_tells_the_distance_to_the_best_of_its_level_seed_by_seed(make_run):
    values = {"px": (0.70, 0.62, 0.66), "synflow": (0.69, 0.60, 0.65), "random": (0.5,), "snip": (0.75,)}
    for method, seeds in values.items():
        for seed, value in enumerate(seeds):
            folder = make_run(method, 0.9, seed, test_accuracy=value)
    make_run("dense", 0.9, 0, test_accuracy=0.9)
    summary = summary_table(table_of(folder.parent))
    rows = summary.set_index("series")
    assert rows.loc[["px", "dense"], "gap"].isna().all()
    gap = rows.loc["synflow", ["gap", "gap_low", "gap_high"]].tolist()
    assert gap == pytest.approx([-0.01333, -0.02768, 0.00101], abs=1e-5)
    assert rows.loc["snip", "gap"] == pytest.approx(0.05)  # of one seed, and so not the best
    assert rows.loc["random", "gap"] == pytest.approx(-0.2) and math.isnan(rows.loc["random", "gap_low"])
    text = markdown(summary)
    assert "| to the best, same seeds |" in text and "-1.33 (-2.77 to 0.10)" in text and "| -20.00 |" in text
    assert "mean_accuracy" in csv(summary) and "gap_low" in csv(summary)


def test_held_out_images_are_another_metric(make_run):
    for seed, method in product(range(2), ("px", "random")):
        value = 0.5 + 0.1 * (method == "px") + seed / 100
        folder = make_run(method, 0.9, seed, test_accuracy=0.4, val_accuracy=value)
    records, _ = read_all([folder.parent], "validation")
    runs = runs_table(records)
    assert headline(runs).startswith("In validation accuracy at sparsity 0.9, px is 10.0 points above random")
    assert "val_accuracy" in csv(runs).splitlines()[0] and "mean_val_accuracy" in csv(summary_table(runs))
    assert "test_accuracy" not in csv(runs)
    make_run("snip")
    _, [problem] = read_all([folder.parent], "validation")
    assert problem.reason == "no images were held out: --validation says how many"


def test_series_are_named_in_time_that_grows_with_the_runs(make_run):
    [record] = read_all([make_run("px")])[0]
    asked = []

    class Told(dict):
        def get(self, name, default=None):
            asked.append(name)
            return super().get(name, default)

    counts = []
    for number in (20, 40):
        asked.clear()
        configs = [{**record.config, "seed": seed, "epochs": seed % 3} for seed in range(number)]
        series = series_settings([replace(record, config=Told(config)) for config in configs])
        counts.append(len(asked))
        assert series == [f"epochs={seed % 3}" for seed in range(number)]
    assert counts[1] == 2 * counts[0] > 0


def test_cells_are_neither_formulas_nor_html(make_run):
    runs = table_of(make_run("px", model="=cmd|' /C calc'!A0", data="<img src=x onerror=alert(1)>|x"))
    for text in (csv(runs), csv(summary_table(runs))):
        assert "'=cmd" in text and ",=cmd" not in text
        found = pd.read_csv(StringIO(text))
        assert found["sparsity"].item() == 0.9 and found["kept"].item() > 0  # numbers stay numbers
    assert "<img" not in markdown(summary_table(runs)) and "&lt;img src=x" in markdown(summary_table(runs))
