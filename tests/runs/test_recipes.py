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
    published = {
        "cifar10-resnet20": [80, 120],
        "cifar100-vgg16": [60, 120],
        "tiny-imagenet-resnet18": [100, 150],
        "imagenet-resnet50": [30, 60, 80],
        "pretrained-cifar10": [91, 136],
        "pretrained-cifar100": [91, 136],
        "pretrained-tiny-imagenet": [91, 136],
        "voc2012-deeplabv3plus": [50, 60],
        "transfer-imagenet10": [30, 60, 80],
    }
    found = {path.stem: RunConfig(**yaml.safe_load(path.read_text())) for path in RECIPES}
    assert set(found) - {"fashion-mini"} == set(published)
    for name, epochs in published.items():
        assert milestone_epochs(found[name].epochs, tuple(found[name].milestones)) == epochs
