from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from pathex.experiments.runs import RunConfig, check_config
from pathex.tasks import kind
from pathex.train.options import milestone_epochs

RECIPES = {path.stem: path for path in sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))}
PUBLISHED = yaml.safe_load("""
cifar10-resnet20: {data: cifar10}
cifar100-vgg16: {data: cifar100, model: vgg16_bn, nesterov: true, weight_decay: 0.0005, falls: [60, 120]}
tiny-imagenet-resnet18:
  {data: tiny-imagenet, model: resnet18_tiny, lr: 0.2, epochs: 200, falls: [100, 150], batch_size: 256}
imagenet-resnet50:
  {data: imagenet, model: "torchvision:resnet50", sparsity: 0.8926, epochs: 90, falls: [30, 60, 80], batch_size: 448}
pretrained-cifar10: &pretrained
  {data: cifar10, model: "torchvision:resnet50", weights: IMAGENET1K_V1, image_size: 224, epochs: 182,
   falls: [91, 136], batch_size: 256}
pretrained-cifar10-clip: {<<: *pretrained, model: "timm:resnet50_clip", weights: openai}
pretrained-cifar100: {<<: *pretrained, data: cifar100}
pretrained-tiny-imagenet: {<<: *pretrained, data: tiny-imagenet}
voc2012-deeplabv3plus:
  {kind: segmentation, data: voc2012, model: "smp:DeepLabV3Plus", weights: imagenet, encoder_name: resnet50,
   encoder_output_stride: 8, decoder_aspp_separable: false, decoder_aspp_dropout: 0.1, lr: 0.001, head_lr: 0.01,
   epochs: 80, falls: [50, 60], batch_size: 4}
transfer-imagenet10:
  {kind: transfer, data: imagenet, model: "torchvision:resnet50", weights: IMAGENET1K_V1, lr: 0.00005, epochs: 90,
   falls: [30, 60, 80], batch_size: 64, freeze_batchnorm: true}
""")
USUAL = yaml.safe_load("""
{kind: classification, model: resnet20, weights: null, method: px, sparsity: 0.982, rounds: null, images_per_class: 10,
 epochs: 160, falls: [80, 120], gamma: 0.1, batch_size: 128, accumulate: 1, lr: 0.1, head_lr: null, momentum: 0.9,
 nesterov: false, weight_decay: 0.0001, label_smoothing: 0.0, loss: auto, freeze_batchnorm: false, validation: 0.0,
 augment: auto}
""")


def settings(name):
    return RunConfig(**yaml.safe_load(RECIPES[name].read_text()))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_and_says_nothing_that_is_the_default(name):
    values = yaml.safe_load(RECIPES[name].read_text())
    check_config(RunConfig(**values))
    assert RECIPES[name].read_text().startswith("#")
    assert not [name for name, value in values.items() if value == asdict(RunConfig())[name]]


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "fashion-mini"])
def test_the_published_protocol(name):
    config, published = settings(name), {**USUAL, **PUBLISHED[name]}
    found = {
        **asdict(config),
        **config.model_options,
        **config.data_options,
        "kind": kind(config.task, config.data),
        "falls": milestone_epochs(config.epochs, tuple(config.milestones)),
    }
    assert {key: found[key] for key in published} == published
    # Options that the published protocol does not name would go unnoticed otherwise.
    assert {*config.model_options, *config.data_options} <= set(published)
    assert config.method_options == config.augment_options == {}


def test_there_is_a_protocol_for_each_recipe():
    assert set(RECIPES) - {"fashion-mini"} == set(PUBLISHED)


def test_the_published_groups_of_classes():
    options = settings("transfer-imagenet10").task_options
    groups = options.pop("tasks")
    assert options == {}  # one fixed head with alpha 1, pruned on the first: defaults
    assert len(groups) == 10 and all(len(group) == 10 for group in groups)
    classes = [number for group in groups for number in group]
    assert len(set(classes)) == 100 and min(classes) >= 0 and max(classes) < 1000
