import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import pathex
from experiments.runs.outcomes import entries, mask_of, state_of, stop_at
from pathex.experiments.runs import RunConfig, check_same, environment, finished_result, locked, run, write_json
from pathex.experiments.runs.folder import Journal, read_json, write_config, write_lines
from refusals import refused
from small_images import write_images


def test_json_files_are_written_whole_and_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"kept": 3})
    write_lines(tmp_path / "b.jsonl", [{"round": 1}, {"round": 2}])
    assert read_json(tmp_path / "a.json") == {"kept": 3}
    assert (tmp_path / "b.jsonl").read_text() == '{"round": 1}\n{"round": 2}\n'
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.jsonl"}


def test_only_a_result_that_says_done_ends_a_run(tmp_path):
    assert finished_result(tmp_path) is None
    for result, found in (({"status": "stopped"}, None), ({"status": "done", "kept": 1},) * 2):
        write_json(tmp_path / "result.json", result)
        assert finished_result(tmp_path) == found
    (tmp_path / "result.json").write_text('{"status": "do')
    with refused(r"result\.json cannot be read"):
        finished_result(tmp_path)


def test_the_same_settings_on_another_device_are_the_same_run(tmp_path):
    check_same(tmp_path, RunConfig())
    write_config(tmp_path, RunConfig(device="cpu"))
    check_same(tmp_path, RunConfig(out="elsewhere"))
    with (tmp_path / "config.yaml").open("a") as file:
        file.write("capture: auto\n")  # as earlier versions wrote it
    check_same(tmp_path, RunConfig())
    with refused("seed 0 there, 1 here"):
        check_same(tmp_path, RunConfig(seed=1))
    # Of another version, and damaged.
    for content, message in (("method: px\nlearning_rate: 1.0\n", "learning_rate"), ("method: [px\n", "Error")):
        (tmp_path / "config.yaml").write_text(content)
        with refused(rf"config\.yaml cannot be read \(.*{message}"):
            check_same(tmp_path, RunConfig())


def test_a_lock_ends_with_its_block_and_clears_what_killed_processes_left_half_written(tmp_path):
    left = [tmp_path / ".config.yaml.17.tmp", tmp_path / "levels" / "1" / ".checkpoint.pt.17.tmp"]
    left[1].parent.mkdir(parents=True)
    for path in left:
        path.write_text("half")
    for _ in range(2):
        with locked(tmp_path), refused("in use"), locked(tmp_path):
            pass
    assert not any(path.exists() for path in left)


def test_the_journal_logs_events_but_not_steps_and_passes_all_on(tmp_path):
    events = []
    with pytest.raises(ZeroDivisionError), Journal(tmp_path, lambda *event: events.append(event)) as journal:
        journal("step", {"step": 1})
        journal("epoch", {"epoch": 1})
        journal.note("a remark")
        raise ZeroDivisionError("in the middle")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert events == [("step", {"step": 1}), ("epoch", {"epoch": 1})]
    assert [re.sub(r"^[\d-]+ [\d:,]+ ", "", line) for line in lines] == [
        'epoch {"epoch": 1}',
        "a remark",
        "stopped by ZeroDivisionError: in the middle",
    ]


def test_the_environment_is_plain_and_names_no_machine(monkeypatch):
    monkeypatch.setattr("platform.node", lambda: pytest.fail("asked for the name of the machine"))
    known = environment(torch.device("cpu"))
    assert json.loads(json.dumps(known)) == known
    assert known["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert known["device"] == "cpu"


def by_size(model, batches, mask):
    return {name: model.get_parameter(name).detach().abs() for name in mask}


def test_a_run_with_a_scorer_of_ones_own(settings):
    own, named = (run(RunConfig(**settings | {"method": each})) for each in (f"{__name__}:by_size", "magnitude"))
    assert own.folder != named.folder and mask_of(own.folder) == mask_of(named.folder)
    with refused("has no callable 'absent'"):
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
        with refused(None):
            run(RunConfig(**settings | wrong))
        assert not Path(settings["out"]).exists()
    config = RunConfig(**settings)
    folder = Path(settings["out"]) / pathex.experiments.runs.run_name(config)
    folder.mkdir(parents=True)
    with locked(folder), refused("in use by another process"):
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
    with refused(r"other settings \(lr 0\.2 there, 0\.1 here\)"):
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
    with refused(r"data 'npz:.*' changed since"):
        run(RunConfig(**settings))
    (tmp_path / "mine.npz").write_bytes(images)
    events = []
    finished = run(RunConfig(**settings), on_event=lambda *event: events.append(event))
    assert [payload["stage"] for kind, payload in events if kind == "resumed"] == ["pruned", "training"]
    assert [payload["epoch"] for kind, payload in events if kind == "epoch"] == [2]
    assert (folder / "mask.safetensors").read_bytes() == mask
    recorded = sum(row["seconds"] for row in entries(folder / "metrics.jsonl"))
    assert finished.result["train_seconds"] == pytest.approx(recorded)
