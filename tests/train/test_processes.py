import json
import multiprocessing
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from torch import nn

from experiments.runs.outcomes import WITH_TESTS, entries, state_of
from pathex.cli import main
from pathex.distributed import ProcessFailed, launched
from pathex.experiments.runs import RunConfig, run
from pathex.masks import replacing
from pathex.train import check_machine, fabric, load_checkpoint, save_checkpoint
from pathex.train.machine import units
from refusals import refused
from small_images import write_images
from training_in_processes import work, work_and_fail

TORCHRUN = (sys.executable, *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"), "-m", "pathex")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A network without batch statistics, and 34 images in batches of 7: the last batch has six, which two share."""
    shape = {"method": "px", "sparsity": 0.5, "rounds": 3, "model": "model_factories:plain", "images_per_class": 2}
    training = {"epochs": 3, "batch_size": 7, "validation": 0.2, "lr": 0.05, "augment": "crop-flip"}
    data = write_images(tmp_path_factory.mktemp("processes") / "tiny.npz", train=34, test=9, val=5)
    return {**shape, **training, "data": data, "precision": "64-true", "device": "cpu"}


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    return run(RunConfig(**settings, out=str(tmp_path_factory.mktemp("alone")))).folder


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["pathex", "torchrun"])
def test_two_processes_have_the_mask_and_the_curve_of_one(settings, alone, tmp_path, launcher, capfd):
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump({**settings, "devices": 2, "out": str(tmp_path / "runs")}))
    words = ("run", "--config", str(config), "--trust-code")
    if launcher:
        subprocess.run([*launcher, *words], env=WITH_TESTS | {"OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    else:
        assert main(words) == 0
    (pair,) = (tmp_path / "runs").iterdir()
    assert capfd.readouterr().out.splitlines() == [str(pair)]  # one of them speaks
    assert (pair / "mask.safetensors").read_bytes()[-64:] == (alone / "mask.safetensors").read_bytes()[-64:]
    assert json.loads((pair / "environment.json").read_text())["processes"] == 2
    for one, two in zip(entries(alone / "metrics.jsonl"), entries(pair / "metrics.jsonl"), strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-6)  # of outputs in float32
        for name in ("epoch", "train_accuracy", "val_accuracy", "lr"):
            assert one[name] == two[name]
    first, second = (state_of(folder / "last.ckpt") for folder in (alone, pair))
    torch.testing.assert_close(second, first, rtol=0, atol=1e-12)
    one, two = (json.loads((folder / "result.json").read_text()) for folder in (alone, pair))
    assert (one["test_accuracy"], 9) == (two["test_accuracy"], two["test_images"])


def test_an_error_is_one_line_and_leaves_no_process(tmp_path, capfd):
    words = ("--devices", "2", "--device", "cpu", "--out", str(tmp_path / "runs"))
    assert main(["run", *words, "--data", f"npz:{tmp_path / 'none.npz'}"]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "none.npz" in error
    assert not (tmp_path / "runs").exists() and not multiprocessing.active_children()


RECIPES = {
    "ham": {"remedy": "ham", "remedy_options": {"alpha": 5.0}, "average": "swa", "average_options": {"start": 0.25}},
    "sign-in": {"remedy": "sign-in", "optimizer": "adamw", "average": "ema", "average_options": {"decay": 0.9}},
    "sparseopt": {"remedy": "sparseopt", "lr_schedule": "cosine", "warmup": 0.25},
}
"""Options whose trainings two processes carry out as one does."""


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """A folder of trainings: in one process, in two, which are started once, and in one after the other.

    An error in the second process is one of the first.
    """
    root = tmp_path_factory.mktemp("ends")

    def job(name, devices, strategy="ddp", epochs=4, *, norm=False, accumulate=1, recipe=None):
        (root / name).mkdir(exist_ok=True)
        return str(root / name), devices, strategy, epochs, norm, accumulate, recipe or {}

    work([job("alone", 1), job("one-two", 1, epochs=2)])
    work([job(f"{name}-alone", 1, recipe=recipe) for name, recipe in RECIPES.items()])
    shutil.copy(root / "one-two" / "last.ckpt", root / "one-two" / "half.ckpt")
    jobs = [job("pair", 2, "fsdp"), job("one-two", 2, "fsdp"), job("two-one", 2, "fsdp", epochs=2)]
    for strategy in ("ddp", "fsdp"):
        jobs.append(job(f"parts-{strategy}", 2, strategy, accumulate=9))  # shares of 3 and 4 images
        jobs.append(job(f"norm-{strategy}", 2, strategy, norm=True))
    jobs += [job(f"{name}-pair", 2, recipe=recipe) for name, recipe in RECIPES.items()]
    jobs += [job(f"norm-{name}", 2, norm=True, recipe={"average": name}) for name in ("ema", "swa")]
    with refused("process 2 of 2: image 7 cannot be read", ProcessFailed), launched(2, work_and_fail, jobs):
        work_and_fail(jobs)
    shutil.copy(root / "two-one" / "last.ckpt", root / "two-one" / "half.ckpt")
    work([job("two-one", 1)])
    return root


def ranks(folder):
    """What each of two processes ended with."""
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ["pair", "one-two", "two-one", "parts-ddp", "parts-fsdp"])
def test_two_processes_train_as_one(ends, name):
    first, second = (load_checkpoint(ends / folder / "last.ckpt") for folder in ("alone", name))
    assert all(type(value) is torch.Tensor for value in second["model"].values())
    # The outputs reach the loss as float32.
    torch.testing.assert_close(second["model"], first["model"], rtol=0, atol=1e-9)
    torch.testing.assert_close(second["optimizer"]["state"], first["optimizer"]["state"], rtol=0, atol=1e-9)
    assert first["optimizer"]["param_groups"] == second["optimizer"]["param_groups"]
    for row, other in zip(first["rows"], second["rows"], strict=True):
        assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-6)
        assert (other["train_accuracy"], other["val_accuracy"]) == (row["train_accuracy"], row["val_accuracy"])


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_follow_a_recipe_as_one(ends, name):
    first, second = (load_checkpoint(ends / f"{name}-{place}" / "last.ckpt") for place in ("alone", "pair"))
    for part in ("model", "remedy", "average"):
        torch.testing.assert_close(second.get(part), first.get(part), rtol=0, atol=1e-7)
    assert [row["lr"] for row in second["rows"]] == [row["lr"] for row in first["rows"]]
    assert [row["val_accuracy"] for row in second["rows"]] == [row["val_accuracy"] for row in first["rows"]]
    plain = load_checkpoint(ends / "alone" / "last.ckpt")["model"]
    assert (first["model"]["0.weight"] - plain["0.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["ema", "swa"])
def test_processes_end_with_the_same_statistics_of_an_average(ends, name):
    first, second = ranks(ends / f"norm-{name}")
    assert first["buffers"].keys() == second["buffers"].keys() != set()
    assert all(torch.equal(first["buffers"][key], second["buffers"][key]) for key in first["buffers"])
    assert first["accuracy"] == second["accuracy"] == first["rows"][-1]["val_accuracy"]


def test_sharded_weights_stay_masked_and_halves_were_halves(ends):
    pair = ranks(ends / "pair")
    assert all(all(each["sharded"]) for each in pair)
    weights = load_checkpoint(ends / "pair" / "last.ckpt")["model"]
    assert all(torch.equal(weights[name] == 0, ~kept) for name, kept in pair[0]["mask"].items())
    assert [load_checkpoint(ends / each / "half.ckpt")["epoch"] for each in ("one-two", "two-one")] == [2, 2]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_processes_measure_with_the_statistics_of_the_first(ends, strategy):
    first, second = ranks(ends / f"norm-{strategy}")
    saved = load_checkpoint(ends / f"norm-{strategy}" / "last.ckpt")["model"]
    assert first["rows"][-1]["val_accuracy"] == second["rows"][-1]["val_accuracy"] == first["accuracy"]
    assert all(second["buffers"][n].equal(b) and saved[n].equal(b) for n, b in first["buffers"].items())
    assert first["buffers"]["1.running_mean"].abs().sum() > 0


def test_blocks_are_units_unless_they_share_weights():
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(3)))
    model = nn.ModuleDict({"stem": nn.Linear(4, 4), "blocks": blocks, "head": nn.Linear(4, 4)})
    assert units(model, least=30) == [blocks[2], blocks[1], blocks[0]]
    assert units(model, least=41) == []
    model["head"].weight = blocks[1][2].weight
    assert units(model, least=30) == [blocks[2], blocks[0]]


@pytest.mark.parametrize(
    ("gpus", "device", "options", "message"),
    [
        (0, "tpu", {}, "unknown device 'tpu'.*auto, cpu, cuda"),
        (0, "cpu", {"precision": "fp8"}, "unknown precision 'fp8'.*bf16-mixed"),
        (0, "cpu", {"precision": "16-mixed"}, "needs a CUDA device.*32-true"),
        (0, "cpu", {"precision": "16-mixed", "strategy": "fsdp"}, r"precision '16-mixed'.*32-true"),
        (0, "cpu", {"devices": 2, "sync_batchnorm": True}, r"sync_batchnorm is True on the CPU.*False"),
        (0, "cuda", {}, r"device 'cuda'.*Allowed here: auto, cpu"),
        (2, "cuda", {"precision": "16-mixed", "strategy": "fsdp"}, "'16-mixed' with .*'fsdp'.*bf16-mixed"),
        (2, "cuda", {"devices": 3}, "devices is 3; CUDA devices here: 2"),
    ],
)
def test_what_the_machine_cannot_do_is_refused(gpus, device, options, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with refused(message):
        check_machine(device, **options)
    assert check_machine("cpu", devices=2, strategy="fsdp") == "cpu"
    assert check_machine("auto") == ("cuda" if gpus else "cpu")
    assert not gpus or check_machine("cuda", devices=2, sync_batchnorm=True) == "cuda"


def test_a_cluster_around_the_process_plays_no_part_and_torchrun_does(monkeypatch):
    for word in ("SLURM_NTASKS=4", "SLURM_JOB_NAME=sweep", "SLURM_PROCID=2"):
        monkeypatch.setenv(*word.split("="))
    machine = fabric("cpu")
    assert machine.world_size == 1 and machine.is_global_zero
    for word in ("TORCHELASTIC_RUN_ID=1", "WORLD_SIZE=4", "LOCAL_WORLD_SIZE=2"):
        monkeypatch.setenv(*word.split("="))
    with refused("devices is 1, but torchrun started 2 processes here; allowed: 0, 2"):
        fabric("cpu")


def test_a_checkpoint_is_written_whole_and_holds_tensors_and_plain_values_only(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"weight": torch.ones(2), "rows": [{"loss": 0.5}]})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert load_checkpoint(path)["rows"] == [{"loss": 0.5}] and list(tmp_path.iterdir()) == [path]
    torch.save({"harm": tmp_path}, path)
    with refused(r"last\.ckpt cannot be read"):
        load_checkpoint(path)
