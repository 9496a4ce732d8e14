import signal

import pytest

import pathex
from experiments.runs.outcomes import assert_same_outcome, start_and_kill
from pathex.experiments.runs import RunConfig, run
from small_images import write_images

SETTINGS = {
    "method": "px",
    "sparsity": 0.6,
    "model_options": {"width": 4},
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
}


@pytest.fixture
def archive(tmp_path):
    return write_images(tmp_path / "ten.npz", train=120, test=30, classes=10, contrast=18)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("name", ["archive", pytest.param("fashion-mini", marks=pytest.mark.slow)])
def test_a_run_that_is_killed_in_its_second_target_ends_as_an_unbroken_one(name, archive, tmp_path):
    small = {"data": archive, "model": "model_factories:tiny", "model_options": {}} if name == "archive" else {}
    unbroken = run(RunConfig(**SETTINGS | small | {"out": str(tmp_path / "unbroken")}))
    result = unbroken.result
    assert [row["task"] for row in result["tasks"]] == [0, 1]
    assert result["kept"] == round(0.4 * result["total"])
    broken = SETTINGS | small | {"out": str(tmp_path / "broken")}
    start_and_kill(broken, {"event": "step", "task": 1, "epoch": 2})
    (folder,) = (tmp_path / "broken").iterdir()
    assert [path.parent.name for path in sorted(folder.rglob("task.json"))] == ["00"]
    events = []
    run(RunConfig(**broken), on_event=lambda *event: events.append(event))
    assert [(payload["task"], payload["epoch"]) for kind, payload in events if kind == "epoch"] == [(1, 2)]
    assert_same_outcome(unbroken.folder, folder)


@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
@pytest.mark.parametrize("method", ["dense", "ntk-sap", "random"])
def test_other_kinds_of_methods_run(archive, tmp_path, method):
    changes = {"data": archive, "method": method, "epochs": 0, "sparsity": 0.3, "out": str(tmp_path)}
    result = run(RunConfig(**SETTINGS | changes)).result
    assert result["test_accuracy"] == result["zero_shot_accuracy"]
    assert len(result["tasks"]) == 2
    network = pathex.models.create("resnet20", 5, width=4)
    assert result["total"] == sum(weight.numel() for weight in network.parameters() if weight.ndim == 4)
