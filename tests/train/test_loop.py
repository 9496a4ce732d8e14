import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import pathex
from experiments.runs.outcomes import entries, equal, numbers, stop_at
from pathex.pruning import dynamic
from pathex.train import Feed, TrainingDiverged, TrainOptions, evaluate, fabric, fit, load_checkpoint
from pathex.train.loop import Collected
from refusals import refused
from snapshots import unchanged
from training_in_processes import CPU, accuracy, trained
from training_in_processes import network as network_of


def told(events):
    return {"on_event": lambda *event: events.append(event)}


def test_rows_tell_loss_accuracy_and_learning_rate(network, images, tmp_path):
    events = []
    _, rows = trained(network, images, tmp_path, more=told(events))
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
    events, losses = [], iter(range(12))

    def loss(outputs, labels):
        if next(losses, None) is None:  # inside the third epoch
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(outputs, labels)

    whole, _ = trained(network, images, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(network, images, tmp_path / "broken", loss=loss)
    path = tmp_path / "broken" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"epoch": 3}\n{"epo')  # what a kill between two writes could leave
    resumed, again = trained(network, images, tmp_path / "broken", more=told(events))
    assert ("resumed", {"stage": "training", "epoch": 2, "epochs": 4}) in events
    assert entries(path) == again and numbers(path) == numbers(tmp_path / "whole" / "metrics.jsonl")
    assert equal(whole.state_dict(), resumed.state_dict())
    damaged = tmp_path / "broken" / "last.ckpt"
    damaged.write_bytes(b"damaged")
    with refused(r"last\.ckpt cannot be read"):
        trained(network, images, tmp_path / "broken")
    assert damaged.read_bytes() == b"damaged"


RECIPES = {
    "adamw": {"optimizer": "adamw", "lr": 0.01, "lr_schedule": "cosine", "warmup": 0.5},
    "warm steps": {"warmup": 0.25, "milestones": (0.75,)},
    "mixed": {"mixup": 0.5, "cutmix": 1.0, "accumulate": 2},
    "ema": {"average": "ema", "average_options": {"decay": 0.9}},
    "swa": {"average": "swa", "average_options": {"start": 0.25}},
    "ham": {"remedy": "ham", "remedy_options": {"alpha": 5.0}},
    "sign-in": {"remedy": "sign-in", "remedy_options": {"every": 2}},
    "sign-in by adamw": {"remedy": "sign-in", "optimizer": "adamw", "lr": 0.01, "average": "ema", "mixup": 0.2},
    "sparseopt": {"remedy": "sparseopt"},
}


def moving(model, optimizer):
    """A mask that moves in steps 4, 8, 12 of 20: an epoch has 5."""
    mask = pathex.Mask({"5.weight": torch.rand(4, 144, generator=torch.Generator().manual_seed(0)) < 0.3})
    return dynamic.attach(model, mask, optimizer, steps=20, every=4, fraction=0.5)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_is_interrupted_after_any_epoch_ends_bit_for_bit(network, images, tmp_path, name):
    def ends(place, epochs=()):
        for epoch in epochs:
            stop = stop_at("epoch", epoch=epoch)
            with pytest.raises(KeyboardInterrupt):
                trained(network, images, place, more={"prepare": moving, "on_event": stop, **held_out}, **RECIPES[name])
        trained(network, images, place, more={"prepare": moving, **held_out}, **RECIPES[name])
        state = load_checkpoint(place / "last.ckpt")
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in state.pop("rows")]
        return rows, torch.utils._pytree.tree_flatten(state)

    held_out = {"validation": Feed(images, images.test, device=CPU, batch_size=3)}
    rows, (whole, form) = ends(tmp_path / "whole")
    again, (broken, other) = ends(tmp_path / "broken", (1, 2, 3, 4))
    assert rows == again and form == other
    assert all(map(same, whole, broken))
    plain = trained(network, images, tmp_path / "plain", more={"prepare": moving, **held_out})[1]
    assert [row["train_loss"] for row in plain] != [row["train_loss"] for row in rows] or "average" in RECIPES[name]


def same(one, two):
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


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
    with unchanged(model.train()):
        evaluate(model, held_out, accuracy())


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_other_precisions_train(network, images, tmp_path, precision):
    model, rows = trained(network, images, tmp_path, epochs=1, machine=fabric("cpu", precision))
    assert torch.isfinite(torch.tensor(rows[0]["train_loss"]))
    expected = {"64-true": torch.float64, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}[precision]
    assert model.state_dict()["0.weight"].dtype == expected


def test_steps_are_reported_when_enough_time_went_by(network, images, tmp_path, monkeypatch):
    events, moments = [], iter(range(1000))
    monkeypatch.setattr("time.monotonic", lambda: next(moments) * 0.11)
    _, rows = trained(network, images, tmp_path, epochs=1, more=told(events))
    steps = [payload for kind, payload in events if kind == "step"]
    assert steps == [{"epoch": 1, "epochs": 1, "step": step, "steps": 5} for step in (2, 4)]
    assert rows[0]["seconds"] == pytest.approx(6 * 0.11)


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


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_gradient_in_parts_is_the_same_gradient(images, tmp_path, parts):
    plain, doubled = network_of(norm=False), replace(images, dtype=torch.float64)
    whole, rows = trained(plain, doubled, tmp_path / "whole", epochs=2)
    split, others = trained(plain, doubled, tmp_path / "parts", epochs=2, accumulate=parts)
    torch.testing.assert_close(split.state_dict(), whole.state_dict(), rtol=1e-11, atol=1e-13)
    for row, other in zip(rows, others, strict=True):
        assert other == {**row, "train_loss": pytest.approx(row["train_loss"], rel=1e-12), "seconds": other["seconds"]}


def test_frozen_statistics_stay_and_are_used(network, images, tmp_path):
    before, seen = copy.deepcopy(network.state_dict()), []
    network[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    model = trained(network, images, tmp_path, epochs=2, freeze_batchnorm=True)[0]
    after = model.state_dict()
    assert not any(seen) and all(torch.equal(before[n], after[n]) for n in after if "running" in n or "tracked" in n)
    assert not torch.equal(before["1.weight"], after["1.weight"])
    assert [module.training for module in model.modules() if isinstance(module, nn.Dropout)] == [True]  # not frozen


def test_a_later_start_goes_on_as_in_that_epoch_and_resumes(images, tmp_path):
    plain, doubled = network_of(norm=False), replace(images, dtype=torch.float64)
    whole, rows = trained(plain, doubled, tmp_path / "whole", keep=(2,), momentum=0.0)
    middle = copy.deepcopy(plain)
    middle.load_state_dict(load_checkpoint(tmp_path / "whole" / "epoch-2.ckpt")["model"])
    late, later = trained(middle, doubled, tmp_path / "late", start=2, momentum=0.0)
    # Without momentum the state is the weights alone, so the second half must be the same half.
    assert [row["epoch"] for row in later] == [3, 4]
    assert [row["lr"] for row in later] == [row["lr"] for row in rows[2:]] == pytest.approx([0.005, 0.005])
    assert equal(late.state_dict(), whole.state_dict())
    stop = {"on_event": stop_at("epoch", epoch=3)}
    with pytest.raises(KeyboardInterrupt):
        trained(middle, doubled, tmp_path / "broken", start=2, momentum=0.0, more=stop)
    again, rows = trained(middle, doubled, tmp_path / "broken", start=2, momentum=0.0)
    assert [row["epoch"] for row in rows] == [3, 4] and equal(again.state_dict(), whole.state_dict())


def test_what_prepare_does_lasts_and_its_companion_is_restored(network, images, tmp_path):
    made = []

    def prepare(model, optimizer):
        made.append(nn.BatchNorm1d(1))  # something that has a state, of which one counts the steps
        optimizer.register_step_post_hook(lambda *_: made[-1].num_batches_tracked.add_(1))
        optimizer.register_step_post_hook(lambda *_: model[0].weight.data[0].zero_())
        return made[-1]

    trained(network, images, tmp_path, epochs=1, more={"prepare": prepare})
    saved = load_checkpoint(tmp_path / "last.ckpt")["companion"]
    assert made[0].num_batches_tracked == saved["num_batches_tracked"] == 5
    model, _ = trained(network, images, tmp_path, epochs=3, more={"prepare": prepare})
    assert made[1].num_batches_tracked == 15
    assert model.state_dict()["0.weight"].flatten(1).any(1).tolist() == [False, True, True, True]


def test_groups_have_their_own_learning_rate_and_fixed_parameters_stay(network, images, tmp_path):
    before = copy.deepcopy(network.state_dict())
    network[0].weight.requires_grad_(requires_grad=False)
    slow = [{"params": list(network[5].parameters()), "lr": 1e-12}, {"params": list(network[1].parameters())}]
    after = trained(network, images, tmp_path, epochs=2, groups=slow, weight_decay=0.0)[0].state_dict()
    assert torch.equal(before["0.weight"], after["0.weight"])
    torch.testing.assert_close(before["5.weight"], after["5.weight"], rtol=0, atol=1e-9)
    assert (before["1.weight"] - after["1.weight"]).abs().max() > 1e-4


def test_collected_outputs_arrive_in_order_and_all():
    seen = []
    collected = Collected(lambda *pair: seen.append(pair))
    pairs = [(torch.full((2, 2**15), float(number)), torch.full((2,), number)) for number in range(10)]
    for pair in pairs:
        collected(*pair)
    collected.flush()
    collected.flush()
    assert len(seen) == 3  # four batches fill what is collected
    for place in range(2):
        assert torch.equal(torch.cat([pair[place] for pair in seen]), torch.cat([pair[place] for pair in pairs]))
