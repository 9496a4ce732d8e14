import json
import shutil
from pathlib import Path

import pytest
import yaml

import pathex
from experiments.runs.outcomes import entries, mask_of, state_of, stop_at
from pathex.errors import InvalidInput
from pathex.experiments.runs import RunConfig, locked, run
from small_images import write_images


def by_size(model, batches, mask):
    return {name: model.get_parameter(name).detach().abs() for name in mask}


def test_a_run_with_a_scorer_of_ones_own(settings):
    own, named = (run(RunConfig(**settings | {"method": each})) for each in (f"{__name__}:by_size", "magnitude"))
    assert own.folder != named.folder and mask_of(own.folder) == mask_of(named.folder)
    with pytest.raises(InvalidInput, match="has no callable 'absent'"):
        run(RunConfig(**settings | {"method": f"{__name__}:absent"}))


def test_the_settings_reach_pruning_and_training(settings):
    settings |= {"method": "px", "validation": 0.25, "label_smoothing": 0.1}
    first, redrawn = (run(RunConfig(**settings | {"method_options": {"redraw": redraw}})) for redraw in (False, True))
    assert {"val_accuracy", "train_accuracy"} <= set(first.result)
    pruned = json.loads((first.folder / "pruning_set.json").read_text())
    assert (pruned["seed"], pruned["images_per_class"]) == (0, 2)
    masks = [mask_of(result.folder) for result in (first, redrawn)]
    assert masks[0].kept == masks[1].kept and masks[0] != masks[1]
    plain = run(RunConfig(**settings | {"method_options": {"redraw": False}, "label_smoothing": 0.0}))
    assert mask_of(plain.folder) == masks[0]
    assert plain.result["train_loss"] != first.result["train_loss"]
    uniform = run(RunConfig(**settings | {"allocation": "uniform", "epochs": 0}))
    counts = mask_of(uniform.folder).counts().values()
    assert all(count.kept == pytest.approx(count.total / 4, abs=1) for count in counts)
    assert (uniform.result["train_seconds"], uniform.result["allocation"]) == (0, "uniform")


def test_what_leaves_no_mask(settings):
    for wrong in ({"data": "npz:nowhere.npz"}, {"images_per_class": 1000}):
        with pytest.raises(InvalidInput):
            run(RunConfig(**settings | wrong))
        assert not Path(settings["out"]).exists()
    config = RunConfig(**settings)
    folder = Path(settings["out"]) / pathex.experiments.runs.run_name(config)
    folder.mkdir(parents=True)
    with locked(folder), pytest.raises(InvalidInput, match="in use by another process"):
        run(config)
    finished = run(RunConfig(**settings | {"method": "dense", "epochs": 1}))
    assert finished.result["kept"] == finished.result["total"] > 0
    assert (finished.result["sparsity"], finished.result["dead_layers"]) == (0.0, 0)
    for name in ("mask.safetensors", "pruning_set.json"):
        assert not (finished.folder / name).exists()


@pytest.fixture(scope="module")
def done(settings_of_all):
    """Settings of a run, what it ended with, and its events but for the steps."""
    events = []
    finished = run(RunConfig(**settings_of_all), on_event=lambda *event: events.append(event))
    return settings_of_all, finished, [event for event in events if event[0] != "step"]


def test_a_run_leaves_every_file_and_holds_its_mask(done):
    settings, finished, events = done
    folder, result = finished.folder, finished.result
    assert {path.name for path in folder.iterdir()} - {".lock"} == {
        *("config.yaml", "environment.json", "pruning_set.json", "mask.safetensors", "history.jsonl"),
        *("pruning.json", "metrics.jsonl", "last.ckpt", "result.json", "log.txt"),
    }
    assert json.loads((folder / "result.json").read_text()) == result
    assert RunConfig(**yaml.safe_load((folder / "config.yaml").read_text())) == RunConfig(
        **{**settings, "milestones": [0.5, 0.75], "ignore": [], "prunable": []}
    )
    assert result["status"] == "done" and 0 <= result["test_accuracy"] <= 1
    assert result["kept"] == round(0.25 * result["total"])
    assert len(json.loads((folder / "pruning_set.json").read_text())["indices"]) == 8
    assert len(entries(folder / "history.jsonl")) == result["rounds"] == 2
    assert len(entries(folder / "metrics.jsonl")) == 2
    mask = mask_of(folder)
    assert (mask.metadata["method"], mask.metadata["data"]) == ("magnitude", settings["data"])
    weights = state_of(folder / "last.ckpt")
    assert all(not weights[name][~mask[name]].any() for name in mask)
    assert [kind for kind, _ in events] == ["prune_round", "prune_round", "prune_done", "epoch", "epoch", "done"]
    assert events[0][1] == {"round": 1, "rounds": 2, "density": pytest.approx(0.5, abs=1e-3)}


def test_a_run_that_is_done_computes_nothing_again(done, monkeypatch):
    settings, finished, _ = done
    monkeypatch.setattr("pathex.experiments.runs.runner.build_task", lambda *_, **__: pytest.fail("built again"))
    events = []
    assert run(RunConfig(**settings), on_event=lambda *event: events.append(event)) == finished
    assert [kind for kind, _ in events] == ["resumed", "done"]


def test_a_folder_of_other_settings_is_refused(done, tmp_path):
    settings, finished, _ = done
    path = shutil.copytree(finished.folder, tmp_path / finished.folder.name) / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.1", "lr: 0.2"))
    with pytest.raises(InvalidInput, match=r"other settings \(lr 0\.2 there, 0\.1 here\)"):
        run(RunConfig(**settings | {"out": str(tmp_path)}))


def test_an_interrupted_run_keeps_its_mask_and_its_epochs_unless_the_data_changed(settings, tmp_path):
    settings["data"] = f"npz:{shutil.copy(settings['data'].removeprefix('npz:'), tmp_path / 'mine.npz')}"
    with pytest.raises(KeyboardInterrupt):
        run(RunConfig(**settings), on_event=stop_at("epoch"))
    (folder,) = Path(settings["out"]).iterdir()
    mask, images = (folder / "mask.safetensors").read_bytes(), (tmp_path / "mine.npz").read_bytes()
    assert not (folder / "result.json").exists()
    assert "stopped by KeyboardInterrupt" in (folder / "log.txt").read_text()
    write_images(tmp_path / "mine.npz", seed=1)
    with pytest.raises(InvalidInput, match=r"data 'npz:.*' changed since"):
        run(RunConfig(**settings))
    (tmp_path / "mine.npz").write_bytes(images)
    events = []
    finished = run(RunConfig(**settings), on_event=lambda *event: events.append(event))
    assert [payload["stage"] for kind, payload in events if kind == "resumed"] == ["pruned", "training"]
    assert [payload["epoch"] for kind, payload in events if kind == "epoch"] == [2]
    assert (folder / "mask.safetensors").read_bytes() == mask
    recorded = sum(row["seconds"] for row in entries(folder / "metrics.jsonl"))
    assert finished.result["train_seconds"] == pytest.approx(recorded)
