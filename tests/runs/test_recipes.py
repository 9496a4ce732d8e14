from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from pathex.runs import RunConfig, check_config
from pathex.train.loop import milestone_epochs

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_says_nothing_that_is_the_default(path):
    values = yaml.safe_load(path.read_text())
    check_config(RunConfig(**values))
    assert path.read_text().startswith("#")
    assert not [name for name, value in values.items() if value == asdict(RunConfig())[name]]


def test_the_published_schedules():
    assert {path.stem for path in RECIPES} >= {"cifar10-resnet20", "cifar100-vgg16"}
    for path in RECIPES:
        config = RunConfig(**yaml.safe_load(path.read_text()))
        epochs = {"cifar10": [80, 120], "cifar100": [60, 120]}.get(config.data)
        assert epochs is None or milestone_epochs(config.epochs, tuple(config.milestones)) == epochs
