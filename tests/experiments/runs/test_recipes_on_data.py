"""Every recipe on real images, as a user types it, with overrides that make it fit two processor cores."""

import os
import shlex
import signal
import subprocess
import sys
import time
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
from pathex.experiments.runs import RunConfig, run, run_name

pytestmark = [
    pytest.mark.data,
    pytest.mark.filterwarnings("ignore:data .* is a part of the published images:pathex.errors.PathexWarning"),
    pytest.mark.filterwarnings("ignore:data 'voc2012'. 70 . 40 images, published:pathex.errors.PathexWarning"),
    pytest.mark.filterwarnings("ignore:data 'voc2012'. fewer than 1 training images:pathex.errors.PathexWarning"),
    pytest.mark.filterwarnings("ignore:(?s).* tensors loaded:pathex.errors.PathexWarning"),
]
RECIPES = Path(__file__).parents[3] / "recipes"
SMALL = {
    "fashion-mini": "--model-options.width 4 --rounds 2",
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
        teacher = {f"module.backbone.{name}": value for name, value in state.items()}
        torch.save({"teacher": teacher}, folder / "dino.pth")
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


def words_of(name, files, out, *more):
    overrides = shlex.split(SMALL[name].format(**files))
    fixed = ["--epochs", "2", "--device", "cpu", "--out", str(out)]
    return ["--config", str(RECIPES / f"{name}.yaml"), *overrides, *fixed, *more]


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


IN_EPOCH_2 = ("step", {"epoch": 2})
WHERE = {"cifar10-resnet20": ("prune_round", {"round": 2}), "cifar100-vgg16": IN_EPOCH_2}
WHERE["pretrained-cifar100"] = IN_EPOCH_2
"""Where runs are stopped, by recipe; the others after the first epoch."""

QUICK = ("cifar10-resnet20", "cifar100-vgg16", "tiny-imagenet-resnet18")


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


def test_there_are_overrides_for_each_recipe():
    assert set(SMALL) == {path.stem for path in RECIPES.glob("*.yaml")}


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [  # what is overridden beside the small overrides
        ("voc2012-deeplabv3plus", "--model-options.encoder_name resnet50 --weights dino:{dino}"),
        (
            "transfer-imagenet10",
            "--model torchvision:resnet50 --weights dino:{dino} --data-options.image_size 32 --sparsity 0.5 --rounds 1"
            " --data-options.mean [0.485,0.456,0.406] --data-options.std [0.229,0.224,0.225]"
            " --task-options '{{tasks: [[0, 1], [2, 3]]}}'",
        ),
    ],
)
def test_dino_as_a_start(name, more, files, tmp_path):
    overrides = shlex.split(more.format(**files))
    check_result(*by_command(words_of(name, files, tmp_path, *overrides)))


def test_what_recipes_inherit_from_their_data(files):
    from pathex.tasks import build

    def inherited(name, **more):
        config = RunConfig(**yaml.safe_load((RECIPES / f"{name}.yaml").read_text()))
        options = {**config.data_options, "root": str(files["data"]), **more}
        task = build(
            "classification", "resnet20", config.data, seed=0, data_options=options, model_options={"width": 1}
        )
        return task.augment, dict(task.augment_options), tuple(task.example.shape[1:])

    photographs = {"min_scale": 0.2, "grayscale": 0.2, "jitter": 0.4, "hue": 0.4}
    assert inherited("imagenet-resnet50", classes=[0, 1]) == ("resized-crop", photographs, (3, 224, 224))
    windows = {"min_scale": 0.1, "max_ratio": 1.25}
    assert inherited("tiny-imagenet-resnet18", classes=[0, 1]) == ("resized-crop", windows, (3, 64, 64))
    assert inherited("pretrained-tiny-imagenet", classes=[0, 1]) == ("resized-crop", windows, (3, 224, 224))
    task = build("classification", "resnet20", f"npz:{files['few']}", seed=0, data_options={"image_size": 224})
    assert (task.augment, task.example.shape[-1]) == ("crop-flip", 224)
