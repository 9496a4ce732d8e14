"""The published protocols, and every recipe on real images, as a user types it, with overrides for two cores."""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml

from brute_force.clip_resnet import VisualTower
from experiments.runs.outcomes import assert_same_outcome, mask_of, numbers, state_of, stop_at
from pathex.cli import COMMANDS, main
from pathex.cli.parser import parse
from pathex.experiments.runs import RunConfig, check_config, run, run_name
from pathex.tasks import build, kind
from pathex.train.schedule import milestone_epochs

pytestmark = [
    pytest.mark.filterwarnings("ignore:data .* is a part of the published images:pathex.errors.PathexWarning"),
    pytest.mark.filterwarnings("ignore:data 'voc2012'. 70 . 40 images, published:pathex.errors.PathexWarning"),
    pytest.mark.filterwarnings("ignore:data 'voc2012'. fewer than 1 training images:pathex.errors.PathexWarning"),
    pytest.mark.filterwarnings("ignore:(?s).* tensors loaded:pathex.errors.PathexWarning"),
]
on_data = pytest.mark.data
RECIPES = {path.stem: path for path in sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))}
OWN = {"fashion-mini", "cifar10-short"}  # from no paper
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


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in OWN])
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


def test_the_published_groups_of_classes():
    options = settings("transfer-imagenet10").task_options
    groups = options.pop("tasks")
    assert options == {}  # one fixed head with alpha 1, pruned on the first: defaults
    assert len(groups) == 10 and all(len(group) == 10 for group in groups)
    classes = [number for group in groups for number in group]
    assert len(set(classes)) == 100 and min(classes) >= 0 and max(classes) < 1000


SMALL = {
    "fashion-mini": "--model-options.width 4 --rounds 2",
    "cifar10-short": "--data npz:{some} --model-options.width 4 --rounds 3 --engine sparse",
    "cifar10-resnet20": "--data npz:{some} --model-options.width 4 --rounds 3",
    "cifar100-vgg16": "--data npz:{data}/cifar100.npz --data-options.classes [0,30,60,90] --model-options.width 0.125"
    " --rounds 3",
    "tiny-imagenet-resnet18": "--data-options.root {data} --data-options.classes [0,50,100,150] --model-options.width 8"
    " --rounds 3 --batch-size 32",
    "imagenet-resnet50": "--data-options.root {data} --data-options.classes [0,1] --data-options.image_size 32"
    " --rounds 1 --batch-size 32",
    "pretrained-cifar10": "--data npz:{few} --data-options.classes [3,5] --data-options.image_size 32"
    " --weights mocov2:{moco} --rounds 1 --sparsity 0.5 --images-per-class 2 --batch-size 16",
    "pretrained-cifar10-clip": "--data npz:{few} --data-options.classes [3,5] --data-options.image_size 64"
    " --model timm:resnet50_clip_gap --weights clip:{clip} --rounds 1 --sparsity 0.5 --images-per-class 1"
    " --batch-size 8",
    "pretrained-cifar100": "--data npz:{data}/cifar100.npz --data-options.classes [0,30,60]"
    " --data-options.image_size 64 --data-options.mean 0.5 --data-options.std 0.5 --model timm:tf_efficientnet_lite0"
    " --weights {lite0} --rounds 2 --batch-size 32",
    "pretrained-tiny-imagenet": "--data-options.root {data} --data-options.classes [0,50,100,150]"
    " --data-options.image_size 96 --data-options.mean 0.5 --data-options.std 0.5 --model timm:tf_efficientnet_lite0"
    " --weights {lite0} --rounds 2 --batch-size 16",
    "voc2012-deeplabv3plus": "--data-options.root {data} --data-options.image_size 40 --task-options.crop 33"
    " --model-options.encoder_name mobilenet_v2 --weights {mobilenet} --rounds 1 --sparsity 0.5 --images-per-class 1",
    "transfer-imagenet10": "--data-options.root {data} --data-options.image_size 64 --task-options '{{tasks: 2}}'"
    " --data-options.mean 0.5 --data-options.std 0.5 --model timm:tf_efficientnet_lite0 --weights {lite0} --rounds 2",
}
"""Overrides by recipe, as in a shell."""


@pytest.fixture(scope="module")
def files(data_folder, tmp_path_factory):
    """Names of files of this machine: what is there, and checkpoints of ResNet-50s that no one trained."""
    folder, checkpoints = tmp_path_factory.mktemp("files"), data_folder / "checkpoints"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = {k: v for k, v in torchvision.models.resnet50().state_dict().items() if not k.startswith("fc.")}
        moco = {f"module.encoder_q.{name}": value for name, value in state.items()}
        torch.save({"state_dict": moco | {"module.queue": torch.zeros(4, 8)}}, folder / "moco.pth.tar")
        clip = {f"visual.{name}": value for name, value in VisualTower().state_dict().items()}
        torch.save(clip | {"logit_scale": torch.zeros(())}, folder / "clip.pt")
    with np.load(data_folder / "cifar10.npz") as archive:
        images = dict(archive)
    np.savez(folder / "few.npz", **first(images, 6, 3))
    np.savez(folder / "some.npz", **first(images, 50, 10))
    return {
        "data": data_folder,
        **{path.name.partition(".")[0]: path for path in folder.iterdir()},
        "lite0": checkpoints / "tf_efficientnet_lite0-imagenet.safetensors",
        "mobilenet": checkpoints / "mobilenet_v2-features-imagenet.safetensors",
    }


def first(images, train, test):
    """The first images of each class of CIFAR-10."""
    found = {}
    for part, count in (("train", train), ("test", test)):
        labels = np.ravel(images[f"{part}_labels"])
        rows = np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(10)])
        found |= {f"{part}_images": images[f"{part}_images"][rows], f"{part}_labels": labels[rows]}
    return found


def words_of(name, files, out):
    overrides = shlex.split(SMALL[name].format(**files))
    return ["--config", str(RECIPES[name]), *overrides, "--epochs", "2", "--device", "cpu", "--out", str(out)]


def by_command(words):
    """Carry a run out by the command line: its settings and its folder."""
    assert main(["run", *words]) == 0
    config = parse(["run", *words], COMMANDS)[1]
    return config, Path(config.out) / run_name(config)


def check_result(config, folder):
    [result] = numbers(folder / "result.json")
    metric, rows = result["metric"], [row for path in folder.rglob("metrics.jsonl") for row in numbers(path)]
    assert (result["status"], result["epochs"], result["method"]) == ("done", 2, "px")
    assert result["kept"] == round((1 - config.sparsity) * result["total"])
    assert 0 <= result[f"test_{metric}"] <= 1 and result["test_images"] > 0
    assert [row["epoch"] for row in rows] == [1, 2] * (len(rows) // 2)
    assert all(np.isfinite(row["train_loss"]) for row in rows)
    mask = mask_of(folder)
    for path in folder.rglob("last.ckpt"):
        weights = state_of(path)
        assert not any(weights[name][~mask[name]].any() for name in mask)


WHERE = dict.fromkeys(("cifar100-vgg16", "pretrained-cifar100"), ("step", {"epoch": 2}))
WHERE["cifar10-resnet20"] = ("prune_round", {"round": 2})
"""Where runs are stopped, by recipe; the others after the first epoch."""

QUICK = ("cifar10-resnet20", "cifar100-vgg16", "tiny-imagenet-resnet18")


@on_data
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in SMALL]
)
def test_a_recipe_runs_and_goes_on_where_it_was_stopped(name, files, tmp_path, monkeypatch):
    monkeypatch.setattr("pathex.train.loop._SECONDS_BETWEEN_STEP_EVENTS", 0.0)
    config, unbroken = by_command(words_of(name, files, tmp_path / "unbroken"))
    check_result(config, unbroken)

    words = words_of(name, files, tmp_path / "broken")
    kind, known = WHERE.get(name, ("epoch", {"epoch": 1}))
    with pytest.raises(KeyboardInterrupt):
        run(parse(["run", *words], COMMANDS)[1], on_event=stop_at(kind, **known))
    assert not (tmp_path / "broken" / unbroken.name / "result.json").exists()
    assert_same_outcome(by_command(words)[1], unbroken)


@on_data
@pytest.mark.slow
def test_a_killed_command_goes_on(files, tmp_path):
    name = "cifar100-vgg16"
    _, unbroken = by_command(words_of(name, files, tmp_path / "unbroken"))
    words = words_of(name, files, tmp_path / "broken")
    place = tmp_path / "broken" / unbroken.name
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "pathex", "run", *words]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as child:
        while not (place / "metrics.jsonl").exists() and child.poll() is None:
            time.sleep(0.02)
        child.kill()
        assert child.wait() == -signal.SIGKILL, child.stderr.read().decode()
    assert not (place / "result.json").exists()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert_same_outcome(place, unbroken)


@on_data
def test_what_recipes_inherit_from_their_data(files):
    def inherited(name, **more):
        config = settings(name)
        options = {**config.data_options, "root": str(files["data"]), **more}
        options = {"data_options": options, "model_options": {"width": 1}}
        task = build("classification", "resnet20", config.data, seed=0, **options)
        return task.data.augment, dict(task.data.augment_options), tuple(task.example.shape[1:])

    photographs = {"min_scale": 0.2, "grayscale": 0.2, "jitter": 0.4, "hue": 0.4}
    assert inherited("imagenet-resnet50", classes=[0, 1]) == ("resized-crop", photographs, (3, 224, 224))
    windows = {"min_scale": 0.1, "max_ratio": 1.25}
    assert inherited("tiny-imagenet-resnet18", classes=[0, 1]) == ("resized-crop", windows, (3, 64, 64))
    assert inherited("pretrained-tiny-imagenet", classes=[0, 1]) == ("resized-crop", windows, (3, 224, 224))
    task = build("classification", "resnet20", f"npz:{files['few']}", seed=0, data_options={"image_size": 224})
    assert (task.data.augment, task.example.shape[-1]) == ("crop-flip", 224)


def test_there_are_a_protocol_and_overrides_for_each_recipe():
    assert set(RECIPES) - OWN == set(PUBLISHED) and set(SMALL) == set(RECIPES)
