from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml

from pathex.cli import COMMANDS
from pathex.cli.parser import parse
from pathex.experiments.sweep import plan

SWEEPS = sorted((Path(__file__).parents[3] / "recipes" / "sweeps").glob("*.yaml"))
PUBLISHED = [round(1 - 0.8 ** (2 * step), 4) for step in range(1, 10)]
PARTS = {"pretrained": 3, "voc2012": 3, "transfer": 3}


@cache
def planned(path):
    return plan(parse(["sweep", "--config", str(path)], COMMANDS)[1])


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_file_is_built_on_the_recipe_of_its_name(path):
    content = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("#")
    assert content["base"] == f"../{path.name}" and content["out"] == f"runs/{path.stem}"
    base = yaml.safe_load((path.parent / content["base"]).read_text())
    runs = planned(path).runs.values()
    varied = {name for grid in (content["grid"], *content.get("list", ())) for name in dict(grid)} if isinstance(
        content["grid"], dict
    ) else {name for grid in content["grid"] for name in grid}  # fmt: skip
    for name in set(base) - varied - set(content.get("settings", {})):
        assert {_plain(getattr(run, name)) for run in runs} == {_plain(base[name])}


def _plain(value):
    return str(list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("path", [path for path in SWEEPS if path.stem != "fashion-mini"], ids=lambda path: path.stem)
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


def test_there_is_a_sweep_for_each_recipe():
    recipes = {path.stem for path in (Path(__file__).parents[3] / "recipes").glob("*.yaml")}
    assert {path.stem for path in SWEEPS} == recipes - {"pretrained-cifar10-clip"}  # a grid of pretrained-*


def test_the_first_sweep_is_small():
    (path,) = [path for path in SWEEPS if path.stem == "fashion-mini"]
    runs = list(planned(path).runs.values())
    assert len(runs) == 12 and {run.model_options["width"] for run in runs} == {8}
