import re
import warnings

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import pathex
from experiments.runs.outcomes import assert_same_outcome, equal, start_and_kill
from pathex.errors import PathexWarning
from pathex.experiments.runs import RunConfig, run
from pathex.tasks import build
from pathex.train import TrainOptions, fabric
from refusals import refused
from small_images import write_images
from voc_folder import write_voc


@pytest.mark.parametrize(
    ("weights", "data_options", "other"),
    [("weights.safetensors", {}, True), ("weights.safetensors", {"mean": 0.5, "std": 0.5}, False), (None, {}, False)],
)
def test_another_normalisation_than_that_of_the_weights_is_a_warning(weights, data_options, other, tmp_path):
    write_voc(tmp_path, 4, 2)
    # Its published weights saw images normalised by 0.5.
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "weights.safetensors")
    options = {"model_options": {"encoder_name": "tu-tf_efficientnet_lite0"}, "task_options": {"crop": 32}, "seed": 0}
    options |= {"data_options": {"root": tmp_path, **data_options}, "weights": weights and str(tmp_path / weights)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PathexWarning)
        build("auto", "smp:Unet", "voc2012", **options)
    said = [str(each.message) for each in caught if "normalised" in str(each.message)]
    assert len(said) == other
    seen, given = "saw images normalised by mean .*0.5, 0.5, 0.5.* and std .*", "has mean .*0.485.*options mean"
    assert all(re.search(f"{seen}, and data 'voc2012' {given}", line) for line in said)


@pytest.fixture
def data(tmp_path):
    return write_images(tmp_path / "tiny.npz", train=40, test=8, contrast=60)


def made(data, seed=0, **options):
    return build("classification", "resnet20", data, seed=seed, model_options={"width": 4}, **options)


def test_weights_follow_from_the_seed_alone_and_validation_images_are_neither_trained_on_nor_pruned_with(data):
    torch.manual_seed(5)
    task, state = made(data, validation=0.25), torch.get_rng_state()
    first = task.model.state_dict()
    torch.rand(7)
    assert equal(first, made(data).model.state_dict())
    assert not equal(first, made(data, 1).model.state_dict())
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())
    train, held_out = set(task.train_indices.tolist()), set(task.validation_indices.tolist())
    assert not train & held_out
    assert train | held_out == set(range(40))
    assert set(task.pruning_set(5, seed=0).indices) <= train


def test_training_learns_and_the_test_split_is_measured(data, tmp_path):
    task, machine = made(data, validation=0.2), fabric("cpu")
    options = TrainOptions(epochs=20, batch_size=8, lr=0.1, augment="auto")
    model, rows = task.train(options, fabric=machine, folder=tmp_path)
    assert {"train_accuracy", "val_accuracy"} <= set(rows[-1])
    accuracy = task.test(model, fabric=machine, batch_size=3)["test_accuracy"]
    assert accuracy in {count / 8 for count in range(9)}
    assert accuracy >= 0.75


def test_the_head_is_the_layer_of_the_classes_wherever_it_stands(data, monkeypatch):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits, self.body = nn.Linear(6, 4), nn.Linear(192, 6)

        def forward(self, x):
            return self.logits(self.body(x.flatten(1)))

    monkeypatch.setattr("pathex.models.create", lambda *_, **__: Turned())
    task = build("classification", "resnet20", data, seed=0)
    body, head = task.groups(TrainOptions(epochs=1, batch_size=8, lr=0.1, head_lr=0.2))
    assert [len(weight) for weight in head["params"]] == [4, 4] and [len(weight) for weight in body["params"]] == [6, 6]


def test_a_network_with_other_outputs_is_refused(data, monkeypatch):
    monkeypatch.setattr("pathex.models.create", lambda *_, **__: nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, 7)))
    with refused(r"'resnet20' gives \(1, 7\) .* needs \(1, 4\)"):
        build("classification", "resnet20", data, seed=0)


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
