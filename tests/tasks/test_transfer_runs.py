import json
import os
import signal
import subprocess
import sys

import pytest
import torch

import pathex
from pathex.experiments.runs import RunConfig, run
from small_images import write_images

TINY = {"width": 4}


def settings_of(name, out):
    return {
        "method": "px",
        "sparsity": 0.6,
        "model": "resnet20",
        "model_options": TINY,
        "data": name,
        "task": "transfer",
        "task_options": {"tasks": 2, "targets": [0, 1]},
        "rounds": 2,
        "images_per_class": 2,
        "epochs": 2,
        "batch_size": 64,
        "lr": 5e-5,
        "milestones": [0.34, 0.67],
        "freeze_batchnorm": True,
        "device": "cpu",
        "out": str(out),
    }


@pytest.fixture
def archive(tmp_path):
    return write_images(tmp_path / "ten.npz", train=120, test=30, classes=10, contrast=18)


CHILD = """
import json, os, signal, sys
import torch
from pathex.experiments.runs import RunConfig, run
from pathex.train import loop

loop._SECONDS_BETWEEN_STEP_EVENTS = 0.0  # an epoch of this test is shorter than the pause between two events
torch.set_num_threads(int(sys.argv[2]))  # sums are the same bit for bit with as many threads

def on_event(kind, payload):
    if kind == "step" and payload["task"] == 1 and payload["epoch"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)

run(RunConfig(**json.loads(sys.argv[1])), on_event=on_event)
"""


def comparable(result):
    return {name: value for name, value in result.items() if "seconds" not in name}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("name", ["archive", pytest.param("fashion-mini", marks=pytest.mark.slow)])
def test_a_run_that_is_killed_in_its_second_target_ends_as_an_unbroken_one(name, archive, tmp_path):
    small = {"model": "model_factories:tiny", "model_options": {}} if name == "archive" else {}
    name = archive if name == "archive" else name
    unbroken = run(RunConfig(**settings_of(name, tmp_path / "unbroken") | small))
    result = unbroken.result
    assert [row["task"] for row in result["tasks"]] == [0, 1]
    assert result["kept"] == round(0.4 * result["total"])
    broken = settings_of(name, tmp_path / "broken") | small
    words = [sys.executable, "-c", CHILD, json.dumps(broken), str(torch.get_num_threads())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.run(words, capture_output=True, check=False, env=environment)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    (folder,) = (tmp_path / "broken").iterdir()
    assert [path.parent.name for path in sorted(folder.rglob("task.json"))] == ["00"]
    events = []
    again = run(RunConfig(**broken), on_event=lambda *event: events.append(event))
    trained = [(payload["task"], payload["epoch"]) for kind, payload in events if kind == "epoch"]
    assert trained == [(1, 2)]
    assert comparable(again.result) == comparable(result)
    for number in ("00", "01"):
        left, right = (
            torch.load(each.folder / "tasks" / number / "last.ckpt", weights_only=True)["model"]
            for each in (unbroken, again)
        )
        assert all(torch.equal(value, right[key]) for key, value in left.items())


@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
@pytest.mark.parametrize("method", ["dense", "ntk-sap", "random"])
def test_other_kinds_of_methods_run(archive, tmp_path, method):
    settings = {**settings_of(archive, tmp_path), "method": method, "epochs": 0, "sparsity": 0.3}
    result = run(RunConfig(**settings)).result
    assert result["test_accuracy"] == result["zero_shot_accuracy"]
    assert len(result["tasks"]) == 2
    network = pathex.models.create("resnet20", 5, **TINY)
    assert result["total"] == sum(weight.numel() for weight in network.parameters() if weight.ndim == 4)
