import copy
import json

import pytest
import torch
from torch import nn

from pathex.errors import InvalidInput
from pathex.train import Feed, TrainingDiverged, TrainOptions, evaluate, fabric, fit
from pathex.train.options import milestone_epochs
from training_in_processes import CPU, accuracy, trained


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Stop:
    """Interrupts the training inside its third epoch."""

    def __init__(self):
        self.calls = 0

    def __call__(self, outputs, labels):
        self.calls += 1
        if self.calls == 13:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(outputs, labels)


def test_milestones_are_the_nearest_ends_of_an_epoch():
    assert milestone_epochs(160, (0.5, 0.75)) == [80, 120]
    assert milestone_epochs(160, (0.375, 0.75)) == [60, 120]
    assert milestone_epochs(182, (0.5, 136 / 182)) == [91, 136]
    assert milestone_epochs(1, (0.5, 0.75)) == [1, 1]


def test_rows_tell_loss_accuracy_and_learning_rate(network, images, tmp_path):
    events = []
    _, rows = trained(network, images, tmp_path, more={"on_event": lambda *event: events.append(event)})
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["lr"] for row in rows] == pytest.approx([0.05, 0.05, 0.005, 0.005])
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert all(0 <= row["train_accuracy"] <= 1 for row in rows)
    assert lines(tmp_path) == rows
    assert [payload for kind, payload in events if kind == "epoch"] == [{"epochs": 4, **row} for row in rows]


def test_an_interrupted_training_ends_with_the_same_weights(network, images, tmp_path):
    whole, rows = trained(network, images, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(network, images, tmp_path / "broken", loss=Stop())
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3}\n{"epo')  # what a kill between two writes could leave
    events = []
    resumed, again = trained(
        network, images, tmp_path / "broken", more={"on_event": lambda *event: events.append(event)}
    )
    assert ("resumed", {"stage": "training", "epoch": 2, "epochs": 4}) in events
    assert without_times(again) == without_times(rows)
    assert lines(tmp_path / "broken") == again
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_last_epoch(network, images, tmp_path):
    with pytest.raises(TrainingDiverged, match=r"became nan in epoch 1 with lr 0\.05"):
        trained(network, images, tmp_path, loss=lambda outputs, _: outputs.sum() * float("nan"))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0


def test_validation_is_measured_after_each_epoch_in_eval_mode(network, images, tmp_path):
    held_out = Feed(images, images.test, device=CPU, batch_size=3)
    model, rows = trained(network, images, tmp_path, more={"validation": held_out})
    assert rows[-1]["val_accuracy"] == evaluate(model, held_out, accuracy())
    before = copy.deepcopy(model.state_dict())
    model.train()
    evaluate(model, held_out, accuracy())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


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


def test_no_epoch_leaves_the_network_and_its_checkpoint(network, images, tmp_path):
    model, rows = trained(network, images, tmp_path, epochs=0)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["model"]
    assert rows == []
    assert torch.equal(saved["0.weight"], network[0].weight)
    assert torch.equal(model.state_dict()["0.weight"], network[0].weight)


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


def test_a_loss_that_turns_infinite_is_noticed_before_the_epoch_ends(network, images, tmp_path, monkeypatch):
    monkeypatch.setattr("pathex.train.loop._SECONDS_BETWEEN_STEP_EVENTS", 0.0)
    losses = []

    def infinite(outputs, _):
        losses.append(outputs.sum() * float("inf"))
        return losses[-1]

    with pytest.raises(TrainingDiverged):
        trained(network, images, tmp_path, loss=infinite)
    assert len(losses) == 1


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
