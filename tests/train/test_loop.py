import copy

import pytest
import torch
from torch import nn

from experiments.runs.outcomes import entries, equal, numbers
from pathex.errors import InvalidInput
from pathex.train import Feed, TrainingDiverged, TrainOptions, evaluate, fabric, fit
from pathex.train.options import milestone_epochs
from training_in_processes import CPU, accuracy, trained


def test_milestones_are_the_nearest_ends_of_an_epoch():
    for epochs, fractions, expected in (
        (160, (0.5, 0.75), [80, 120]),
        (160, (0.375, 0.75), [60, 120]),
        (182, (0.5, 136 / 182), [91, 136]),
        (1, (0.5, 0.75), [1, 1]),
    ):
        assert milestone_epochs(epochs, fractions) == expected


def test_rows_tell_loss_accuracy_and_learning_rate(network, images, tmp_path):
    events = []
    told = {"on_event": lambda *event: events.append(event)}
    _, rows = trained(network, images, tmp_path, more=told)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["lr"] for row in rows] == pytest.approx([0.05, 0.05, 0.005, 0.005])
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert all(0 <= row["train_accuracy"] <= 1 for row in rows)
    assert entries(tmp_path / "metrics.jsonl") == rows
    assert [payload for kind, payload in events if kind == "epoch"] == [{"epochs": 4, **row} for row in rows]
    model, rows = trained(network, images, tmp_path / "none", epochs=0)
    saved = torch.load(tmp_path / "none" / "last.ckpt", weights_only=True)["model"]
    assert rows == [] and equal(saved, network.state_dict()) and equal(model.state_dict(), network.state_dict())


def test_an_interrupted_training_ends_with_the_same_weights(network, images, tmp_path):
    losses = iter(range(12))

    def loss(outputs, labels):
        if next(losses, None) is None:  # inside the third epoch
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(outputs, labels)

    whole, _ = trained(network, images, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(network, images, tmp_path / "broken", loss=loss)
    path, events = tmp_path / "broken" / "metrics.jsonl", []
    with path.open("a") as file:
        file.write('{"epoch": 3}\n{"epo')  # what a kill between two writes could leave
    told = {"on_event": lambda *event: events.append(event)}
    resumed, again = trained(network, images, tmp_path / "broken", more=told)
    assert ("resumed", {"stage": "training", "epoch": 2, "epochs": 4}) in events
    assert entries(path) == again and numbers(path) == numbers(tmp_path / "whole" / "metrics.jsonl")
    assert equal(whole.state_dict(), resumed.state_dict())


def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_last_epoch(network, images, tmp_path, monkeypatch):
    losses = []

    def infinite(outputs, _):
        losses.append(outputs.sum() * float("inf"))
        return losses[-1]

    with pytest.raises(TrainingDiverged, match=r"became (nan|-?inf) in epoch 1 with lr 0\.05"):
        trained(network, images, tmp_path, loss=infinite)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0
    assert len(losses) == 5
    # Where there is time for it, before the epoch ends.
    monkeypatch.setattr("pathex.train.loop._SECONDS_BETWEEN_STEP_EVENTS", 0.0)
    with pytest.raises(TrainingDiverged):
        trained(network, images, tmp_path / "soon", loss=infinite)
    assert len(losses) == 6


def test_validation_is_measured_after_each_epoch_in_eval_mode(network, images, tmp_path):
    held_out = Feed(images, images.test, device=CPU, batch_size=3)
    model, rows = trained(network, images, tmp_path, more={"validation": held_out})
    assert rows[-1]["val_accuracy"] == evaluate(model, held_out, accuracy())
    before = copy.deepcopy(model.state_dict())
    model.train()
    evaluate(model, held_out, accuracy())
    assert model.training
    assert equal(model.state_dict(), before)


def test_what_prepare_does_to_the_weights_lasts(network, images, tmp_path):
    def freeze_first_filter(model, optimizer):
        def zero(*_):
            with torch.no_grad():
                model[0].weight[0].zero_()

        zero()
        optimizer.register_step_post_hook(zero)

    model, _ = trained(network, images, tmp_path, more={"prepare": freeze_first_filter})
    assert not model.state_dict()["0.weight"][0].any()
    assert model.state_dict()["0.weight"][1].any()


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_other_precisions_train(network, images, tmp_path, precision):
    model, rows = trained(network, images, tmp_path, epochs=1, machine=fabric("cpu", precision))
    assert torch.isfinite(torch.tensor(rows[0]["train_loss"]))
    expected = {"64-true": torch.float64, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}[precision]
    assert model.state_dict()["0.weight"].dtype == expected


def test_steps_are_reported_when_enough_time_went_by(network, images, tmp_path, monkeypatch):
    moments = iter(range(1000))
    monkeypatch.setattr("time.monotonic", lambda: next(moments) * 0.11)
    events = []
    told = {"on_event": lambda *event: events.append(event)}
    _, rows = trained(network, images, tmp_path, epochs=1, more=told)
    steps = [payload for kind, payload in events if kind == "step"]
    assert [payload["step"] for payload in steps] == [2, 4]
    assert steps[0] == {"epoch": 1, "epochs": 1, "step": 2, "steps": 5}
    assert rows[0]["seconds"] == pytest.approx(6 * 0.11)


def test_a_wrong_checkpoint_is_named_and_not_overwritten(network, images, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"damaged")
    with pytest.raises(InvalidInput, match=r"last\.ckpt cannot be read"):
        trained(network, images, tmp_path)
    assert (tmp_path / "last.ckpt").read_bytes() == b"damaged"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_on_a_gpu_resumes_with_its_scaler(network, images, tmp_path, precision):
    machine = fabric("cuda", precision)

    def train_until(epochs):
        feed = Feed(images, images.train, device=machine.device, batch_size=8, augment="crop-flip")
        options = TrainOptions(epochs=epochs, lr=0.01, augment="crop-flip")
        more = {"loss": nn.CrossEntropyLoss(), "metric": accuracy(), "folder": tmp_path}
        return fit(copy.deepcopy(network), feed, options, fabric=machine, **more)

    train_until(1)
    _, rows = train_until(2)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True, map_location="cpu")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert ("scale" in saved["precision"]) == (precision == "16-mixed")


def test_weights_follow_from_the_seed_and_the_global_random_state_is_neither_used_nor_moved(network, images, tmp_path):
    torch.manual_seed(1)
    first, _ = trained(network, images, tmp_path / "first")
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    second, _ = trained(network, images, tmp_path / "second")
    other, _ = trained(network, images, tmp_path / "other", seed=1)
    first, second, other = (model.state_dict()["5.weight"] for model in (first, second, other))
    assert torch.equal(first, second) and not torch.equal(first, other)
