import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments.runs.outcomes import equal, stop_at
from pathex.train import load_checkpoint
from pathex.train.loop import Collected
from training_in_processes import trained


@pytest.fixture
def plain():
    """A network whose images do not meet: no batch statistics, no dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).double()


@pytest.fixture
def doubled(images):
    return replace(images, dtype=torch.float64)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_gradient_in_parts_is_the_same_gradient(plain, doubled, tmp_path, parts):
    whole, rows = trained(plain, doubled, tmp_path / "whole", epochs=2)
    split, others = trained(plain, doubled, tmp_path / "parts", epochs=2, accumulate=parts)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], value, rtol=1e-11, atol=1e-13)
    assert [row["train_loss"] for row in rows] == pytest.approx([row["train_loss"] for row in others], rel=1e-12)
    assert [row["train_accuracy"] for row in rows] == [row["train_accuracy"] for row in others]


def test_frozen_statistics_stay_and_are_used(network, images, tmp_path):
    before = copy.deepcopy(network.state_dict())
    seen = []
    network[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    model = trained(network, images, tmp_path, epochs=2, freeze_batchnorm=True)[0]
    after = model.state_dict()
    assert not any(seen)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(before[name], after[name])
    assert not torch.equal(before["1.weight"], after["1.weight"])
    assert [module.training for module in model.modules() if isinstance(module, nn.Dropout)] == [True]  # not frozen


def test_a_later_start_goes_on_with_the_schedule_and_the_order_of_that_epoch(plain, doubled, tmp_path):
    whole, rows = trained(plain, doubled, tmp_path / "whole", epochs=4, keep=(2,), momentum=0.0)
    middle = copy.deepcopy(plain)
    middle.load_state_dict(load_checkpoint(tmp_path / "whole" / "epoch-2.ckpt")["model"])
    late, later = trained(middle, doubled, tmp_path / "late", epochs=4, start=2, momentum=0.0)
    # Without momentum the state is the weights alone, so the second half must be the same half.
    assert [row["epoch"] for row in later] == [3, 4]
    assert [row["lr"] for row in later] == [row["lr"] for row in rows[2:]] == pytest.approx([0.005, 0.005])
    assert equal(late.state_dict(), whole.state_dict())


def test_a_late_start_that_was_stopped_resumes(plain, doubled, tmp_path):
    stop = stop_at("epoch", epoch=3)
    whole, _ = trained(plain, doubled, tmp_path / "whole", epochs=4, start=2)
    with pytest.raises(KeyboardInterrupt):
        trained(plain, doubled, tmp_path / "broken", epochs=4, start=2, more={"on_event": stop})
    again, rows = trained(plain, doubled, tmp_path / "broken", epochs=4, start=2)
    assert [row["epoch"] for row in rows] == [3, 4]
    assert equal(again.state_dict(), whole.state_dict())


class Counter:
    """Counts the steps of an optimizer."""

    def __init__(self, _, optimizer):
        self.steps = 0
        optimizer.register_step_post_hook(self._count)

    def _count(self, *_):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_the_state_of_a_companion_is_saved_and_restored(network, images, tmp_path):
    made = []

    def prepare(model, optimizer):
        made.append(Counter(model, optimizer))
        return made[-1]

    trained(network, images, tmp_path, epochs=1, more={"prepare": prepare})
    assert made[0].steps == load_checkpoint(tmp_path / "last.ckpt")["companion"]["steps"] == 5
    trained(network, images, tmp_path, epochs=3, more={"prepare": prepare})
    assert made[1].steps == 15


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
