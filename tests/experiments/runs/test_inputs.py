"""A run is made from code and files, and what changed of them since is told."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.sweep.conftest import InProcess
from pathex.experiments.runs import RunConfig, run
from pathex.experiments.sweep import SweepConfig, plan, sweep
from pathex.files import read
from refusals import refused
from small_images import write_image, write_images

SCORER = """
def grade(model, batches, mask):
    return {name: (%s + model.get_parameter(name)).abs() for name in mask}
"""
FACTORY = """
from model_factories import tiny

def build(num_classes, in_channels, width):
    return tiny(num_classes, in_channels, width)
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Settings of a run that names code and files of every kind."""
    for name in ("graders", "factories"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graders.py").write_text(SCORER % 1)
    (tmp_path / "factories.py").write_text(FACTORY)
    for part, label, number in ((p, c, n) for p in ("train", "test") for c in ("a", "b") for n in range(3)):
        write_image(tmp_path / "photos" / part / label / f"{number}.png", (20 * number, 0, 90))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "photos" / "notes.txt").symlink_to("nowhere")
    from model_factories import tiny

    network = tiny(num_classes=2, in_channels=3, width=4)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    keep = {name: torch.ones_like(weight) for name, weight in network.named_parameters() if weight.ndim > 1}
    save_file(keep, tmp_path / "start.safetensors")
    return {
        "method": "graders:grade",
        "model": "factories:build",
        "data": "imagefolder:photos",
        "data_options": {"classes": "classes.txt"},
        "weights": "weights.safetensors",
        "start_mask": "start.safetensors",
        "model_options": {"width": 4},
        **{
            "sparsity": 0.25,
            "allocation": "layer",
            "images_per_class": 1,
            "epochs": 1,
            "batch_size": 4,
            "device": "cpu",
            "out": "runs",
        },
    }


def touched(path):
    """Give a file another time, as an editor does that saves the same length."""
    about = Path(path).stat()
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 10**9))


def reweighed(path):
    tensors = load_file(path)
    tensors["fc.weight"][0, 0] = 0
    save_file(tensors, path)


CHANGES = {
    "module 'graders'": lambda: Path("graders.py").write_text(SCORER % 2),
    "module 'factories'": lambda: Path("factories.py").write_text(FACTORY + "# other\n"),
    "data 'imagefolder:photos'": lambda: touched("photos/train/a/1.png"),
    "data_options.classes 'classes.txt'": lambda: Path("classes.txt").write_text("a\nb"),
    "weights 'weights.safetensors'": lambda: reweighed("weights.safetensors"),
    "start_mask 'start.safetensors'": lambda: reweighed("start.safetensors"),
}


def test_what_changed_since_a_run_is_named_and_fresh_begins_anew(made, tmp_path):
    finished = run(RunConfig(**made))
    assert read(finished.folder / "inputs.json").keys() == CHANGES.keys()
    assert run(RunConfig(**made)) == run(RunConfig(**made, fresh=True)) == finished
    time = (finished.folder / "result.json").stat().st_mtime_ns
    for what, change in CHANGES.items():
        change()
        with refused(rf"runs/.* holds a run with other settings, inputs or files \({what} changed since\); --fresh"):
            run(RunConfig(**made))
        assert (finished.folder / "result.json").stat().st_mtime_ns == time
        time = (run(RunConfig(**made, fresh=True)).folder / "result.json").stat().st_mtime_ns
        assert run(RunConfig(**made)).folder == finished.folder
    (tmp_path / "photos" / "train" / "a" / ".DS_Store").write_text("")
    shutil.rmtree(tmp_path / "photos" / "test")
    with refused(r"\(data 'imagefolder:photos' changed since\)"):
        run(RunConfig(**made))
    shutil.rmtree(tmp_path / "photos")  # there is nothing that could give other numbers
    run(RunConfig(**made))


def test_a_run_that_was_stopped_does_not_go_on_with_others_and_older_folders_do(made, tmp_path):
    def stop(kind, _):
        if kind == "prune_done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(RunConfig(**made), on_event=stop)
    CHANGES["module 'graders'"]()
    with refused("module 'graders' changed"):
        run(RunConfig(**made))
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / "inputs.json").unlink()
    seen = []
    run(RunConfig(**made), on_event=lambda kind, payload: seen.append((kind, payload.get("stage"))))
    assert ("resumed", "pruned") in seen


def test_a_sweep_tells_it_too_and_a_folder_of_an_earlier_name_is_found(made, tmp_path):
    given = {name: value for name, value in made.items() if name not in ("out", "start_mask")}
    data = write_images(tmp_path / "small.npz")
    config = SweepConfig(settings={**given, "data": data, "data_options": {}, "weights": None}, grid={"seed": [0, 1]})
    planned = plan(config)
    assert [name.split("-")[-2] for name in planned.runs] == ["seed0", "seed1"]
    assert sweep(planned.runs, tmp_path / "runs", InProcess).done == 2
    old, new = (f"{name}" for name in (list(planned.runs)[1].replace("-seed1", ""), list(planned.runs)[1]))
    (tmp_path / "runs" / new).rename(tmp_path / "runs" / old)
    again = plan(config)
    assert list(again.runs)[1] == old
    assert sweep(again.runs, tmp_path / "runs", lambda: pytest.fail("started")).before == 2
    write_images(tmp_path / "small.npz", seed=1)
    stale = sweep(again.runs, tmp_path / "runs", InProcess)
    assert stale.done == 0 and all(f"data '{data}' changed" in error for error in stale.failed.values())
    fresh = plan(SweepConfig(settings=config.settings | {"fresh": True}, grid=config.grid))
    assert list(fresh.runs) == list(again.runs)
    assert sweep(fresh.runs, tmp_path / "runs", InProcess).done == 2
    assert sweep(again.runs, tmp_path / "runs", lambda: pytest.fail("started")).before == 2
