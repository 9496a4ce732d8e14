import pytest
import torch
from torch import nn

from pathex.errors import InvalidInput
from pathex.tasks import build
from pathex.train import TrainOptions, fabric
from small_images import write_images

TINY = {"width": 4}


@pytest.fixture
def data(tmp_path):
    return write_images(tmp_path / "tiny.npz", train=40, test=8, contrast=60)


def test_initial_weights_follow_from_the_seed_alone(data):
    torch.manual_seed(5)
    first = build("classification", "resnet20", data, seed=0, model_options=TINY).model.state_dict()
    state = torch.get_rng_state()
    torch.rand(7)
    second = build("classification", "resnet20", data, seed=0, model_options=TINY).model.state_dict()
    other = build("classification", "resnet20", data, seed=1, model_options=TINY).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())


def test_validation_images_are_neither_trained_on_nor_pruned_with(data):
    task = build("classification", "resnet20", data, seed=0, validation=0.25, model_options=TINY)
    train, held_out = set(task.train_indices.tolist()), set(task.validation_indices.tolist())
    assert not train & held_out
    assert train | held_out == set(range(40))
    assert set(task.pruning_set(5, seed=0).indices) <= train


def test_training_learns_and_the_test_split_is_measured(data, tmp_path):
    task = build("classification", "resnet20", data, seed=0, validation=0.2, model_options=TINY)
    options = TrainOptions(epochs=20, batch_size=8, lr=0.1, augment="auto")
    machine = fabric("cpu")
    model, rows = task.train(options, fabric=machine, folder=tmp_path)
    assert {"train_accuracy", "val_accuracy"} <= set(rows[-1])
    accuracy = task.test(model, fabric=machine, batch_size=3)["test_accuracy"]
    assert accuracy in {count / 8 for count in range(9)}
    assert accuracy >= 0.75


def test_a_network_with_other_outputs_is_refused(data, monkeypatch):
    monkeypatch.setattr("pathex.models.create", lambda *_, **__: nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, 7)))
    with pytest.raises(InvalidInput, match=r"'resnet20' gives \(1, 7\) .* needs \(1, 4\)"):
        build("classification", "resnet20", data, seed=0)
