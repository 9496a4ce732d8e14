import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import model_factories
import pathex
from experiments.runs.outcomes import assert_same_outcome, entries, mask_of, state_of, stop_at
from pathex.errors import FolderInUse
from pathex.experiments.runs import (
    RunConfig,
    build_task,
    check_same,
    environment,
    finished_result,
    locked,
    run,
    run_name,
    write_json,
)
from pathex.experiments.runs.folder import Journal, read_config, write_config
from pathex.train import evaluate
from refusals import refused
from small_images import write_images


def test_a_folder_is_of_the_same_settings_and_only_a_result_that_says_done_ends_it(tmp_path):
    assert finished_result(tmp_path) is None
    for result, found in (({"status": "stopped"}, None), ({"status": "done", "kept": 1},) * 2):
        write_json(tmp_path / "result.json", result)
        assert finished_result(tmp_path) == found
    (tmp_path / "result.json").write_text('{"status": "do')
    with refused(r"result\.json cannot be read"):
        finished_result(tmp_path)
    (tmp_path / "result.json").unlink()
    check_same(tmp_path, RunConfig())
    write_config(tmp_path, RunConfig(device="cpu"))
    check_same(tmp_path, RunConfig(out="elsewhere"))
    (folder := tmp_path / "texts").mkdir()
    write_config(folder, texts := RunConfig(out="2e1", data_options={"version": "12e4567"}))
    found = read_config(folder)
    assert (found.out, found.data_options) == (texts.out, texts.data_options)  # though it looks like a number
    _, _, unsealed = (tmp_path / "config.yaml").read_text().partition("\n")
    (tmp_path / "config.yaml").write_text(f"{unsealed}capture: auto\n")  # as earlier versions wrote it
    check_same(tmp_path, RunConfig())
    with refused("seed 0 there, 1 here"):
        check_same(tmp_path, RunConfig(seed=1))
    # Of another version, and damaged.
    for content, message in (("method: px\nlearning_rate: 1.0\n", "learning_rate"), ("method: [px\n", "Error")):
        (tmp_path / "config.yaml").write_text(content)
        with refused(rf"config\.yaml cannot be read \(.*{message}"):
            check_same(tmp_path, RunConfig())


def test_a_lock_ends_with_its_block(tmp_path):
    for _ in range(2):
        with locked(tmp_path), refused("in use"), locked(tmp_path):
            pass


def test_a_run_that_is_refused_deletes_nothing_of_the_one_that_has_the_folder(settings, monkeypatch):
    @contextmanager
    def taken(folder):
        (folder / "mine").touch()
        raise FolderInUse("in use")
        yield

    monkeypatch.setattr("pathex.experiments.runs.runner.locked", taken)
    with refused("in use"):
        run(RunConfig(**settings))
    assert list(Path(settings["out"]).glob("*/mine"))


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


def test_a_run_leaves_every_file_holds_its_mask_and_computes_nothing_again(settings, monkeypatch):
    events = []
    finished = run(RunConfig(**settings), on_event=lambda *event: events.append(event))
    folder, result = finished.folder, finished.result
    assert {path.name for path in folder.iterdir()} - {".lock"} == {
        *("config.yaml", "environment.json", "inputs.json", "pruning_set.json", "mask.safetensors", "history.jsonl"),
        *("pruning.json", "metrics.jsonl", "last.ckpt", "result.json", "log.txt"),
    }
    assert RunConfig(**yaml.safe_load((folder / "config.yaml").read_text())) == RunConfig(
        **{**settings, "milestones": [0.5, 0.75], "ignore": [], "prunable": []}
    )
    assert 0 <= result["test_accuracy"] <= 1
    assert result["kept"] == round(0.25 * result["total"])
    assert len(json.loads((folder / "pruning_set.json").read_text())["indices"]) == 8
    assert len(entries(folder / "history.jsonl")) == result["rounds"] == 2
    assert len(entries(folder / "metrics.jsonl")) == 2
    mask = mask_of(folder)
    assert (mask.metadata["method"], mask.metadata["data"]) == ("magnitude", settings["data"])
    weights = state_of(folder / "last.ckpt")
    assert all(not weights[name][~mask[name]].any() for name in mask)
    kinds = ["prune_round", "prune_round", "prune_done", "epoch", "epoch", "done"]
    assert [kind for kind, _ in events if kind != "step"] == kinds
    assert events[0][1] == {"round": 1, "rounds": 2, "density": pytest.approx(0.5, abs=1e-3)}
    monkeypatch.setattr("pathex.experiments.runs.runner.build_task", lambda *_, **__: pytest.fail("built again"))
    events.clear()
    assert run(RunConfig(**settings), on_event=lambda *event: events.append(event)) == finished
    assert [kind for kind, _ in events] == ["resumed", "done"]


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


def test_too_many_images_of_a_kernel_are_refused_before_there_is_a_folder(settings, tmp_path):
    with refused("kernel_images is 1000: images_per_class=1000: class '0' of .* has only"):
        run(RunConfig(**settings | {"kernel_every": 1, "kernel_images": 1000, "out": str(tmp_path / "new")}))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("method", ["magnitude", "imp"])
def test_a_recipe_that_was_stopped_ends_as_if_it_had_not_been(settings, tmp_path, method):
    recipe = {"optimizer": "adamw", "lr": 0.01, "lr_schedule": "cosine", "warmup": 0.4, "mixup": 0.2, "cutmix": 1.0}
    recipe |= {"average": "ema", "average_options": {"decay": 0.9}, "remedy": "sign-in", "validation": 0.25}
    recipe |= {"kernel_every": 1, "kernel_images": 1}
    if method == "imp":
        recipe |= {"optimizer": "sgd", "remedy": "sparseopt", "average": "swa", "average_options": {"start": 0.3}}
        recipe |= {"method_options": {"levels": 2}, "rounds": None}
    else:
        recipe |= {"dynamic": "set", "dynamic_options": {"every": 2}}
    config = RunConfig(**settings | recipe | {"method": method, "epochs": 3})
    whole = run(replace(config, out=str(tmp_path / "whole")))
    for epoch in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run(config, on_event=stop_at("epoch", epoch=epoch))
    resumed = run(config)
    assert_same_outcome(whole.folder, resumed.folder)
    # What was measured is what the folder gives back.
    task, network = build_task(config), pathex.load_run(resumed.folder, model_factories.tiny)
    feed = task.feed("test", torch.device("cpu"), 16)
    assert evaluate(network, feed, task.metric(torch.device("cpu"))) == resumed.result["test_accuracy"]


@pytest.mark.parametrize("dynamic", ["none", "rigl"])
def test_the_kernel_is_measured_as_the_network_trains(settings, tmp_path, dynamic):
    recipe = {"epochs": 3, "kernel_every": 2, "kernel_images": 2, "precision": "64-true", "dynamic": dynamic}
    recipe |= {} if dynamic == "none" else {"dynamic_options": {"every": 1, "until": 1.0}}
    folder = run(RunConfig(**settings | recipe)).folder
    rows = entries(folder / "metrics.jsonl")
    assert ["ntk_trace" in row for row in rows] == [False, True, True]  # every second, and the last
    network, images = pathex.load_run(folder, model_factories.tiny), build_task(RunConfig(**settings)).pruning_set(2, 0)
    mask = pathex.Mask.load(folder / ("mask.safetensors" if dynamic == "none" else "final_mask.safetensors"))
    kernel = pathex.ntk.kernel(network, images.images, mask, form="trace", batch_norm="calibrated")
    assert rows[-1]["ntk_trace"] == pytest.approx(kernel.trace, rel=1e-6)
    assert rows[-1]["ntk_alignment"] == pytest.approx(pathex.ntk.alignment(kernel, images.labels), rel=1e-5)
    assert 0 < rows[-1]["gates_changed"] < 1


def test_a_name_tells_method_model_data_and_sparsity():
    name = run_name(RunConfig(method="ntk-sap", model="timm:resnet18", data="npz:/data/my images.npz", sparsity=0.982))
    assert re.fullmatch(r"ntk-sap-timm_resnet18-npz_my_images\.npz-s0\.982-seed0-[0-9a-f]{8}", name)
    assert "-s0-" in run_name(RunConfig(method="dense", sparsity=0.5))


PRUNING = {"sparsity": 0.5, "rounds": 3, "images_per_class": 1, "start_mask": "zeros", "prunable": ("*.bias",)}


@pytest.mark.parametrize(
    ("method", "changes", "same"),
    [
        ("dense", PRUNING, True),
        ("dense", {"seed": 1}, False),
        ("small-dense", {"min_per_layer": 3, "start_mask": "zeros", "images_per_class": 7, "pruning_seed": 3}, True),
        ("imp", {"images_per_class": 7, "pruning_seed": 3}, True),
        ("small-dense", {"sparsity": 0.5}, False),
        ("small-dense", {"method_options": {"match": "multiply-adds"}}, False),
        ("small-dense", {"ignore": ("conv",)}, False),
        ("imp", {"method_options": {"levels": 2}}, False),
        ("imp", {"min_per_layer": 3}, False),
        ("imp", {"sanity": "reinit"}, False),
        ("px", {"images_per_class": 7, "pruning_seed": 3}, False),
        ("px", {"out": "elsewhere", "device": "cpu"}, True),
        ("px", {"milestones": [0.5, 0.75]}, True),
        ("px", {"seed": 1}, False),
        ("px", {"epochs": 3}, False),
        ("px", {"milestones": (0.5,)}, False),
        ("px", {"method_options": {"redraw": True}}, False),
        ("px", {"rounds": 100}, False),
        ("dense", {"remedy": "ham"}, False),
        ("px", {"lr_schedule": "cosine"}, False),
    ],
)
def test_names_tell_what_has_an_effect_and_leave_out_the_rest(method, changes, same):
    assert (run_name(RunConfig(method=method, **changes)) == run_name(RunConfig(method=method))) is same


def test_names_are_those_of_earlier_versions():
    for changes, name in (
        ({}, "px-resnet20-fashion-mini-s0.9-seed0-44136fa3"),
        ({"method": "dense", "epochs": 3}, "dense-resnet20-fashion-mini-s0-seed0-d7552c37"),
        (
            {"method": "snip", "lr": 0.05, "milestones": (0.25,), "gamma": 0.2, "momentum": 0.5, "nesterov": True}
            | {"dynamic": "rigl", "dynamic_options": {"every": 5}},
            "snip-resnet20-fashion-mini-s0.9-seed0-e207ec84",
        ),
        (
            {"method": "imp", "weight_decay": 0.0, "accumulate": 2, "label_smoothing": 0.1},
            "imp-resnet20-fashion-mini-s0.9-seed0-a21cfb52",
        ),
    ):
        assert run_name(RunConfig(**changes)) == name
    cosine = RunConfig(lr_schedule="cosine")
    assert run_name(RunConfig(lr_schedule="cosine", milestones=(0.1,), gamma=0.3)) == run_name(cosine)


def frozen_head(num_classes, in_channels):
    model = pathex.models.create("resnet20", num_classes, in_channels, width=2)
    model.fc.requires_grad_(False)
    return model


FROZEN = {"model": f"{__name__}:frozen_head"}


def by(method, **options):
    return {"method": method, "method_options": options}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "magnitud"}, "unknown method 'magnitud'. Did you mean 'magnitude'.*dense"),
        ({"sparsity": 1.0}, r"sparsity is 1\.0; allowed: a number in \[0, 1\)"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"rounds": 0}, "rounds is 0; allowed: a whole number of at least 1"),
        ({"epochs": -1}, "epochs is -1; allowed: a whole number of at least 0"),
        ({"epochs": "2"}, "epochs is '2'"),
        ({"batch_size": True}, "batch_size is True"),
        ({"lr": 0.0}, "lr is 0.0; allowed: a number above 0"),
        ({"milestones": (0.5, 1.5)}, r"milestones is \(0\.5, 1\.5\)"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov is True with momentum 0"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'. Did you mean 'adamw'"),
        (
            {"optimizer": "adamw", "nesterov": True},
            "nesterov is True with optimizer 'adamw'; allowed: another",
        ),
        ({"lr_schedule": "linear"}, "unknown lr_schedule 'linear'. Known: cosine, steps"),
        ({"warmup": 5}, r"warmup is 5; allowed: a number in \[0, 1\)"),
        ({"mixup": -1.0}, "mixup is -1.0; allowed: a number of at least 0"),
        ({"cutmix": 1.0, "data": "voc2012"}, "cutmix is 1.0 with task 'segmentation'; allowed: another"),
        ({"average": "mean"}, "unknown average 'mean'. Known: ema, none, swa"),
        ({"average_options": {"decay": 0.9}}, "average_options are given and average is 'none'; allowed: another"),
        ({"average": "swa", "average_options": {"decay": 0.9}}, "unknown option of average 'swa' 'decay'"),
        ({"average": "ema", "strategy": "fsdp"}, "average is 'ema' with strategy 'fsdp'; allowed: another"),
        ({"remedy": "signin"}, "unknown remedy 'signin'. Did you mean 'sign-in'"),
        ({"remedy_options": {"alpha": 1}}, "remedy_options are given and remedy is 'none'; allowed: another remedy"),
        ({"remedy": "ham", "remedy_options": {"gamma": 1}}, "option of remedy 'ham' 'gamma'.* Known: alpha, beta"),
        ({"remedy": "sign-in", "remedy_options": {"every": 0.5}}, "every must be a positive integer, got 0.5"),
        ({"remedy": "ham", "strategy": "fsdp"}, "remedy is 'ham' with strategy 'fsdp'; allowed: another"),
        ({"remedy": "ham", "precision": "16-mixed"}, "remedy is 'ham' with precision '16-mixed'; allowed: another"),
        ({"remedy": "sparseopt", "optimizer": "adamw"}, "'sparseopt' with optimizer 'adamw'; allowed: another"),
        ({"remedy": "sparseopt", "method": "dense"}, "remedy is 'sparseopt' with method 'dense'; allowed: another"),
        ({"kernel_every": 1, "data": "voc2012"}, "kernel_every is for task 'classification' on one device"),
        ({"kernel_every": 1, "devices": 2}, "kernel_every is for task 'classification' on one device"),
        ({"augment": "mixup"}, "unknown augment 'mixup'"),
        ({"allocation": "locally"}, "unknown allocation 'locally'"),
        ({"allocation": {"a": 2.0}}, r"allocation of 'a' is 2\.0"),
        ({"allocation": "nowhere.yaml"}, r"allocation file 'nowhere\.yaml' cannot be read .No such file"),
        ({"start_mask": "nowhere.pt"}, r"start_mask 'nowhere\.pt' is no file; allowed: a file, 'zeros' or none"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"seed": -1}, "seed is -1"),
        ({"memory": "a lot"}, "memory must be .* not 'a lot'"),
        ({"method_options": {"redrawn": True}}, "unknown option of method 'px': 'redrawn'. Did you mean 'redraw'.*"),
        ({"model_options": {1: 2}}, "model_options has 1; allowed: names of options"),
        ({"model_options": {"num_classes": 2}}, "model_options has 'num_classes'; allowed"),
        ({"data_options": {"name": "cifar10"}}, "data_options has 'name'; allowed"),
        ({"devices": 100_000, "device": "cpu"}, "devices is 100000; processors here: "),
        ({"model_options": {"factory": len}}, "model_options has a value that a file cannot hold"),
        ({"task": "detection"}, "unknown task 'detection'. Known: auto, classification, segmentation, transfer"),
        ({"pruning_seed": -1}, r"pruning_seed is -1; allowed: a whole number from 0 to 2\*\*63 - 1, or null"),
        ({"head_lr": 0}, "head_lr is 0; allowed: a number above 0, or null"),
        ({"accumulate": 0}, "accumulate is 0; allowed: a whole number of at least 1"),
        ({"accumulate": 200}, "accumulate is 200; allowed: at most the 128 images of a batch"),
        ({"loss": "l2"}, "unknown loss 'l2'. Known: auto, cross-entropy, mse"),
        ({"loss": "mse", "label_smoothing": 0.1}, r"label_smoothing is 0\.1 with loss 'mse'; allowed: 0"),
        ({"sanity": "shufle"}, "unknown sanity 'shufle'. Did you mean 'shuffle'"),
        ({"sanity": "shuffle", "method": "dense"}, "sanity is 'shuffle' with method 'dense', which .*; allowed: none"),
        ({"dynamic": "rigl", "method": "small-dense"}, "dynamic is 'rigl' with method 'small-dense', which has no"),
        ({"dynamic": "rig"}, "unknown dynamic 'rig'. Did you mean 'rigl'"),
        ({"dynamic": "rigl", "task": "transfer"}, "dynamic is 'rigl' with task 'transfer'; allowed: none"),
        ({"dynamic_options": {"every": 5}}, "dynamic_options .* dynamic is 'none'; allowed: dynamic 'rigl' or 'set'"),
        ({"dynamic": "set", "dynamic_options": {"evry": 5}}, "option of dynamic .* 'evry'. Did you mean 'every'"),
        ({"dynamic": "set", "dynamic_options": {"seed": 5}}, "'seed'. .*Known: every, fraction, until"),
        ({"dynamic": "set", "dynamic_options": {"every": 0}}, "every must be a positive integer, got 0"),
        ({"dynamic": "set", "dynamic_options": {"fraction": 1}}, r"fraction is 1; allowed: a number in \(0, 1\)"),
        ({"dynamic": "set", "dynamic_options": {"until": None}}, r"until is None; allowed: a number in \(0, 1\]"),
        ({"method": "imp", "rounds": 5}, "rounds is 5 with method 'imp', .*allowed: none .*--method-options.levels"),
        ({"method": "magnitude-after-training", "rounds": 1}, "rounds is 1 .*which has no rounds; allowed: none$"),
        (
            by("imp", levels="three"),
            "levels is 'three'; allowed: a whole number of at least 1, or a density in .0, 1.$",
        ),
        (by("imp", levels=0), "levels is 0; allowed"),
        (by("imp", levels=1.5), r"levels is 1\.5; allowed"),
        (by("imp", rounds=3), "unknown option of 'imp' 'rounds'. Known: epochs, levels, rewind"),
        (by("imp", epochs=0), "epochs of a level is 0; allowed"),
        (by("imp", rewind="epoch:161"), "rewind is 'epoch:161'; allowed: init, .* or epoch:K with K from 0 to 160"),
        (by("imp", rewind="start"), "rewind is 'start'; allowed"),
        (by("imp", rewind=None), "rewind is None; allowed"),
        (by("magnitude-after-training", levels=2), "'magnitude-after-training' 'levels'"),
        ({"method": "imp", "epochs": 0}, "epochs of a level is 0; allowed: a whole number of at least 1"),
        ({"method": "small-dense", "weights": "w.pt"}, "weights 'w.pt' with method 'small-dense'.*allowed: none"),
        ({"method": "small-dense", "task": "transfer"}, "task 'transfer' with method 'small-dense'; allowed: class"),
        ({"method": "small-dense", "data": "voc2012"}, "task 'segmentation' with method 'small-dense'; allowed: class"),
        (by("small-dense", match="flops"), "unknown match 'flops'"),
        (by("small-dense", mask="m"), "mask 'm' of 'small-dense' is no file; allowed"),
        (by("small-dense", mask=3), "mask 3 of 'small-dense' is no file"),
        (by("small-dense", width=3), "unknown option of 'small-dense' 'width'"),
        # What shows with the data.
        ({"data": "npz:nowhere.npz"}, r"nowhere\.npz"),
        ({"images_per_class": 1000}, "has only 500 training images"),
        (
            {"augment": "auto", "augment_options": {"min_scale": 0.2}},
            "unknown option of augmentation 'crop-flip': 'min_scale'",
        ),
        (
            {"augment": "crop-flip", "augment_options": {"padding": 2}},
            "unknown option of augmentation 'crop-flip': 'padding'. Known: none",
        ),
        (FROZEN | {"head_lr": 0.1}, "head_lr: no head to train is known"),
        (FROZEN | {"method": "small-dense"}, "unknown model with a width"),
        (
            {"method": "small-dense", "model_options": {"width": 4}, "sparsity": 0.9999},
            "no dense 'resnet20' has at most",
        ),
        ({"task_options": {"crop": 65}}, "unknown option of task 'classification': 'crop'. Known: none"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_written(changed, message, tmp_path, monkeypatch):
    monkeypatch.setattr("pathex.experiments.runs.stages.find_ticket", lambda *_: pytest.fail("pruned"))
    with refused(message):
        run(RunConfig(**changed, out=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()
