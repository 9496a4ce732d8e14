import re
from pathlib import Path

import pytest

import pathex
from pathex.experiments.runs import RunConfig, check_config, run, run_name
from refusals import refused


def test_a_name_tells_method_model_data_and_sparsity():
    name = run_name(RunConfig(method="ntk-sap", model="timm:resnet18", data="npz:/data/my images.npz", sparsity=0.982))
    assert re.fullmatch(r"ntk-sap-timm_resnet18-npz_my_images\.npz-s0\.982-[0-9a-f]{8}", name)


def test_dense_runs_of_all_sparsities_are_one_run():
    pruning = {"rounds": 3, "images_per_class": 1, "start_mask": "zeros", "prunable": ("*.bias",)}
    name = run_name(RunConfig(method="dense", sparsity=0.5, **pruning))
    assert name == run_name(RunConfig(method="dense", sparsity=0.9)) != run_name(RunConfig(method="dense", seed=1))
    assert "-s0-" in name


@pytest.mark.parametrize(
    ("method", "changes", "same"),
    [
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
    ],
)
def test_names_tell_what_has_an_effect_and_leave_out_the_rest(method, changes, same):
    assert (run_name(RunConfig(method=method, **changes)) == run_name(RunConfig(method=method))) is same


def frozen_head(num_classes, in_channels):
    model = pathex.models.create("resnet20", num_classes, in_channels, width=2)
    model.fc.requires_grad_(False)
    return model


FROZEN = {"model": f"{__name__}:frozen_head", "model_options": {}}


def test_the_defaults_are_valid():
    check_config(RunConfig())
    check_config(RunConfig(method="dense", epochs=0, allocation={"conv.weight": 0.5}))


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
        ({"augment": "mixup"}, "unknown augment 'mixup'"),
        ({"allocation": "locally"}, "unknown allocation 'locally'"),
        ({"allocation": {"a": 2.0}}, r"allocation of 'a' is 2\.0"),
        ({"allocation": "nowhere.yaml"}, r"allocation file 'nowhere\.yaml' cannot be read: No such file"),
        ({"start_mask": "nowhere.pt"}, r"start_mask 'nowhere\.pt' is no file; allowed: a file, 'zeros' or none"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"seed": -1}, "seed is -1"),
        ({"memory": "a lot"}, "memory must be .* not 'a lot'"),
        ({"method_options": {"redrawn": True}}, "method 'px' has no option 'redrawn'. Known: .*redraw"),
        ({"model_options": {"factory": len}}, "model_options has a value that a file cannot hold"),
        ({"task": "detection"}, "unknown task 'detection'. Known: auto, classification, segmentation, transfer"),
        ({"pruning_seed": -1}, r"pruning_seed is -1; allowed: a whole number from 0 to 2\*\*63 - 1, or null"),
        ({"head_lr": 0}, "head_lr is 0; allowed: a number above 0, or null"),
        ({"accumulate": 0}, "accumulate is 0; allowed: a whole number of at least 1"),
        ({"accumulate": 200}, "accumulate is 200; allowed: at most the 128 images of a batch"),
        ({"loss": "l2"}, "unknown loss 'l2'. Known: auto, cross-entropy, mse"),
        ({"loss": "mse", "label_smoothing": 0.1}, r"label_smoothing is 0\.1 with loss 'mse'; allowed: 0"),
        ({"sanity": "shufle"}, "unknown sanity 'shufle'. Did you mean 'shuffle'"),
        ({"sanity": "reinit,shuffle"}, "unknown sanity 'reinit,shuffle'"),
        ({"sanity": "shuffle", "method": "dense"}, "sanity is 'shuffle' with method 'dense', which .*; allowed: none"),
        ({"dynamic": "rigl", "method": "small-dense"}, "dynamic is 'rigl' with method 'small-dense', which has no"),
        ({"dynamic": "rig"}, "unknown dynamic 'rig'. Did you mean 'rigl'"),
        ({"dynamic": "rigl", "task": "transfer"}, "dynamic is 'rigl' with task 'transfer'; allowed: none"),
        ({"dynamic_options": {"every": 5}}, "dynamic_options .* dynamic is 'none'; allowed: dynamic 'rigl' or 'set'"),
        ({"dynamic": "set", "dynamic_options": {"evry": 5}}, "option of dynamic .* 'evry'. Did you mean 'every'"),
        ({"dynamic": "set", "dynamic_options": {"seed": 5}}, "'seed'. .*Known: every, fraction, until"),
        ({"dynamic": "set", "dynamic_options": {"every": 0}}, "every must be a positive integer, got 0"),
        ({"dynamic": "set", "dynamic_options": {"every": "all"}}, "every must be a positive integer, got 'all'"),
        ({"dynamic": "set", "dynamic_options": {"fraction": 1}}, r"fraction is 1; allowed: a number in \(0, 1\)"),
        ({"dynamic": "set", "dynamic_options": {"until": None}}, r"until is None; allowed: a number in \(0, 1\]"),
        ({"method": "imp", "rounds": 5}, "rounds is 5 with method 'imp', .*allowed: none .*--method-options.levels"),
        ({"method": "magnitude-after-training", "rounds": 1}, "rounds is 1 .*which has no rounds; allowed: none$"),
        ({"method": "imp", "method_options": {"levels": "three"}}, "levels is 'three'; allowed: a whole number"),
        ({"method": "imp", "epochs": 0}, "epochs of a level is 0; allowed: a whole number of at least 1"),
        ({"method": "small-dense", "weights": "w.pt"}, "weights 'w.pt' with method 'small-dense'.*allowed: none"),
        ({"method": "small-dense", "task": "transfer"}, "task 'transfer' with method 'small-dense'; allowed: class"),
        ({"method": "small-dense", "data": "voc2012"}, "task 'segmentation' with method 'small-dense'; allowed: class"),
        ({"method": "small-dense", "method_options": {"match": "flops"}}, "unknown match 'flops'"),
        ({"method": "small-dense", "method_options": {"mask": "m"}}, "mask 'm' of 'small-dense' is no file; allowed"),
        ({"method": "small-dense", "method_options": {"mask": 3}}, "mask 3 of 'small-dense' is no file"),
        ({"method": "small-dense", "method_options": {"width": 3}}, "unknown option of 'small-dense' 'width'"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_written(changed, message, tmp_path):
    with refused(message):
        run(RunConfig(**changed, out=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"augment": "auto", "augment_options": {"min_scale": 0.2}}, "unknown option 'min_scale' of augmentation"),
        ({"augment": "crop-flip", "augment_options": {"padding": 2}}, "unknown option 'padding' of augmentation"),
        (FROZEN | {"head_lr": 0.1}, "head_lr: no head to train is known"),
        (FROZEN | {"method": "small-dense"}, "unknown model with a width"),
        ({"method": "small-dense", "model": "resnet20", "sparsity": 0.9999}, "no dense 'resnet20' has at most"),
        ({"task_options": {"crop": 65}}, "option 'crop' of task 'classification': it has no options"),
    ],
)
def test_what_shows_with_the_data_leaves_no_folder_either(changed, message, settings, monkeypatch):
    monkeypatch.setattr("pathex.experiments.runs.stages.find_ticket", lambda *_: pytest.fail("pruned"))
    with refused(message):
        run(RunConfig(**settings | changed))
    assert not Path(settings["out"]).exists()
