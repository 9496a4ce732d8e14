import itertools
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml

from pathex.cli import COMMANDS
from pathex.cli.parser import parse
from pathex.errors import PathexWarning
from pathex.experiments.runs import RunConfig, run_name
from pathex.experiments.sweep import SweepConfig, plan
from pathex.experiments.sweep.work import share
from refusals import refused


def runs(**options):
    return list(plan(SweepConfig(**options)).runs.values())


def test_grids_are_every_combination_in_order_entries_of_lists_as_they_are_and_dense_runs_once():
    grid = {"method": ["random", "magnitude"], "sparsity": [0.5, 0.9, 0.99], "seed": [3, 1]}
    made = runs(grid=grid, settings={"epochs": 7})
    assert [(run.method, run.sparsity, run.seed) for run in made] == list(itertools.product(*grid.values()))
    assert {run.epochs for run in made} == {7}
    made = runs(list=({"milestones": [0.2, 0.4]}, {"method": "random", "milestones": []}))
    assert [(run.method, run.milestones) for run in made] == [("px", (0.2, 0.4)), ("random", ())]
    made = runs(grid=({"seed": [0, 1], "method": ["dense"]}, {"seed": [2]}), list=({"seed": 3},))
    assert [(run.method, run.seed) for run in made] == [("dense", 0), ("dense", 1), ("px", 2), ("px", 3)]
    # A dotted name sets one option, a plain name all.
    common = {"method_options": {"redraw": True}}
    made = runs(settings=common, list=({"method_options.calibration": "running"}, {"method_options": {}}))
    assert [run.method_options for run in made] == [{"redraw": True, "calibration": "running"}, {}]
    planned = plan(SweepConfig(grid={"method": ["dense", "px"], "sparsity": [0.5, 0.9], "seed": [0, 1]}))
    assert [run.method for run in planned.runs.values()].count("dense") == 2
    assert (len(planned.runs), planned.duplicates) == (6, 2)
    assert list(planned.runs) == [run_name(run) for run in planned.runs.values()]


def test_what_comes_later_wins_and_a_base_may_be_what_a_run_left(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text("epochs: 1\nbatch_size: 2\nmodel_options: {width: 4}\nout: elsewhere\nlr: 1e-4\n")
    changes = {"batch_size": 3, "seed": 8, "model_options.depth": 32}
    (made,) = runs(base=str(base), settings=changes, grid={"seed": [9]}, out="here")
    assert (made.epochs, made.batch_size, made.seed, made.lr, made.out) == (1, 3, 9, 1e-4, "here")
    assert made.model_options == {"width": 4, "depth": 32}
    left = RunConfig(method="random", epochs=3, milestones=(0.25,), out="elsewhere")
    base = tmp_path / "config.yaml"
    base.write_text(yaml.safe_dump({**vars(left), "milestones": [0.25], "ignore": [], "prunable": []}))
    (made,) = runs(base=str(base), grid={"seed": [0]})
    assert run_name(made) == run_name(left) and made.out == "runs"
    base.write_text("base: other.yaml\n")
    with refused(r"config\.yaml: .*'base'"):
        runs(base=str(base), grid={"seed": [1]})


@pytest.mark.parametrize(
    ("options", "culprit", "allowed"),
    [
        ({}, "no runs", "a grid, a list, or both"),
        ({"grid": {"epochs": 3}}, "grid: epochs is 3", "a list of values"),
        ({"grid": {"seed": []}}, "grid: seed is []", "a list of values"),
        ({"grid": {"sede": [1]}}, "grid at {sede: 1}: unknown setting 'sede'", "Did you mean 'seed'"),
        ({"grid": ({"seed": [1]}, {"sparsity": [0.5, 1.5]})}, "grid 2 at {sparsity: 1.5}: sparsity is 1.5", "[0, 1)"),
        ({"grid": (["seed"],)}, "grid 1 is ['seed']", "a mapping"),
        ({"grid": ({"seed": [1]}, {})}, "grid 2 is {}", "a mapping"),
        ({"grid": {"seed": range(2), "lr": [1.0]}}, "grid: seed is range", "a list of values"),
        ({"grid": {"seed": [0] * 1000, "lr": [1.0] * 101}}, "101,000 entries", "at most 100,000"),
        ({"grid": {"method": [None]}}, "grid at {method: None}: method is None", "text"),
        ({"settings": {"epochs": None}, "list": ({},)}, "epochs is None", "a whole number of at least 0"),
        ({"list": ({"method": "pxx"},)}, "list entry 1: unknown method 'pxx'", "px-literal"),
        ({"list": ({}, {"epochs": "many"})}, "list entry 2: epochs is 'many'", "a whole number of at least 0"),
        ({"list": ({"rounds": 1.5},)}, "list entry 1: rounds is 1.5", "a whole number of at least 1, or null"),
        ({"list": ({"seed.x": 1},)}, "list entry 1: seed has no options", "method_options"),
        ({"list": ({"method_options.reddraw": True},)}, "list entry 1", "redraw"),
        ({"list": ({"model_options.a.b": 1},), "settings": {"model_options": {"a": 2}}}, "model_options.a.b", "2"),
        ({"list": ({"out": "x"},)}, "list entry 1: out", "option of the sweep"),
        ({"list": ({"devices": 2},)}, "list entry 1: devices is 2", "1"),
        ({"settings": {"list": ()}, "grid": {"seed": [1]}}, "settings: unknown setting 'list'", "lr"),
        ({"base": {"grid": {}}, "grid": {"seed": [1]}}, "base: unknown setting 'grid'", "seed"),
        ({"base": "nowhere.yaml", "grid": {"seed": [1]}}, "base: 'nowhere.yaml' is no file", "pathex run"),
        ({"grid": {"seed": [1]}, "executor": "slurm"}, "unknown executor 'slurm'", "local, ray"),
        ({"grid": {"seed": [1]}, "concurrent": 0}, "concurrent is 0", "at least 1"),
        ({"grid": {"seed": [1]}, "retries": -1}, "retries is -1", "at least 0"),
        ({"grid": {"seed": [1]}, "address": "auto"}, "address is 'auto'", "executor 'ray'"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(options, culprit, allowed):
    with refused(f"(?s){re.escape(culprit)}.*{re.escape(allowed)}|{re.escape(allowed)}.*{re.escape(culprit)}"):
        runs(**options)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None, 0, 8), (8, 1, 0)),
        ((3, None, 0, 8), (3, 1, 0)),
        ((None, 4, 0, 8), (2, 4, 0)),
        ((None, 16, 0, 8), (1, 16, 0)),
        ((None, None, 2, 16), (2, 8, 2)),
        ((3, None, 2, 12), (6, 2, 2)),
        ((3, 5, 2, 12), (6, 5, 2)),
        ((8, None, 1, 8), (8, 1, 1)),
    ],
)
def test_how_runs_share_a_machine(given, expected):
    made = share(*given)
    assert (made.workers, made.threads, made.gpus) == expected


@pytest.mark.parametrize(("given", "workers", "said"), [((1000, None, 0, 8), 8, "8 runs"), ((9, 1, 2, 8), 8, "4 runs")])
def test_no_more_runs_go_on_than_there_are_processors(given, workers, said):
    with pytest.warns(PathexWarning, match=f"concurrent is {given[0]}; {said}"):
        assert share(*given).workers == workers


SWEEPS = sorted((Path(__file__).parents[3] / "recipes" / "sweeps").glob("*.yaml"))
PUBLISHED = [round(1 - 0.8 ** (2 * step), 4) for step in range(1, 10)]
PARTS = {"pretrained": 3, "voc2012": 3, "transfer": 3}


@cache
def planned(path):
    return plan(parse(["sweep", "--config", str(path)], COMMANDS)[1])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "unfinished:grade"}, r"method 'unfinished:grade': cannot import 'unfinished': .*line 1"),
        ({"method": "raising:grade"}, r"cannot import 'raising': no licence"),
        ({"method": "model_factories:nothing"}, "'model_factories' has no callable 'nothing'"),
        ({"model": "nowhere:net"}, "model 'nowhere:net': cannot import 'nowhere'"),
        ({"model": "unfinished:net"}, "model 'unfinished:net': cannot import"),
        ({"model": "resnet2O"}, "unknown model 'resnet2O'. Did you mean 'resnet"),
    ],
)
def test_code_that_cannot_be_imported_ends_a_sweep_before_its_first_run(tmp_path, monkeypatch, settings, said):
    (tmp_path / "unfinished.py").write_text("def grade(:\n")
    (tmp_path / "raising.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with refused(rf"grid at {{seed: 0}}: .*{said}"):
        plan(SweepConfig(settings=settings, grid={"seed": [0, 1, 2]}))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_file_is_built_on_the_recipe_of_its_name(path):
    content = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("#")
    assert content["base"] == f"../{path.name}" and content["out"] == f"runs/{path.stem}"
    base = yaml.safe_load((path.parent / content["base"]).read_text())
    runs = planned(path).runs.values()
    grids = content["grid"] if isinstance(content["grid"], list) else [content["grid"], *content.get("list", ())]
    varied = {name for grid in grids for name in grid}
    for name in set(base) - varied - set(content.get("settings", {})):
        assert all(json.loads(json.dumps(getattr(run, name))) == base[name] for run in runs)


@pytest.mark.parametrize(
    "path", [path for path in SWEEPS if path.stem not in {"fashion-mini", "cifar10-short"}], ids=lambda path: path.stem
)
def test_the_published_grids(path):
    runs = list(planned(path).runs.values())
    starts = PARTS.get(path.stem.split("-")[0], 1)
    sparsities = [0.8926, 0.956] if path.stem.startswith("imagenet") else PUBLISHED
    counts = Counter(run.method for run in runs)
    assert counts["dense"] == 3 * starts
    assert {count for method, count in counts.items() if method != "dense"} == {3 * starts * len(sparsities)}
    assert {"dense", "random", "magnitude", "snip", "synflow-l2", "px", "px-literal"} <= set(counts)
    assert sorted({run.sparsity for run in runs if run.method == "px"}) == sparsities
    assert {run.seed for run in runs} == {0, 1, 2}
    assert len({(run.model, run.weights) for run in runs}) == starts


def test_there_is_a_sweep_for_each_recipe_and_the_first_is_small():
    recipes = {path.stem for path in (Path(__file__).parents[3] / "recipes").glob("*.yaml")}
    assert {path.stem for path in SWEEPS} == recipes - {"pretrained-cifar10-clip"}  # a grid of pretrained-*
    runs = list(planned(next(path for path in SWEEPS if path.stem == "fashion-mini")).runs.values())
    assert len(runs) == 12 and {run.model_options["width"] for run in runs} == {8}
