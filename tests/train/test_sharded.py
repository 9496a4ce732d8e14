import shutil

import pytest
import torch
from torch import nn

from pathex.distributed import ProcessFailed, launched
from pathex.train import load_checkpoint
from pathex.train.fsdp import units
from training_in_processes import work, work_and_fail


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """A folder of trainings: in one process, in two, which are started once, and in one after the other.

    An error in the second process is one of the first.
    """
    root = tmp_path_factory.mktemp("ends")

    def job(name, devices, strategy="ddp", epochs=4, *, norm=False, accumulate=1):
        (root / name).mkdir(exist_ok=True)
        return str(root / name), devices, strategy, epochs, norm, accumulate

    work([job("alone", 1), job("one-two", 1, epochs=2)])
    shutil.copy(root / "one-two" / "last.ckpt", root / "one-two" / "half.ckpt")
    jobs = [job("pair", 2, "fsdp"), job("one-two", 2, "fsdp"), job("two-one", 2, "fsdp", epochs=2)]
    for strategy in ("ddp", "fsdp"):
        jobs.append(job(f"parts-{strategy}", 2, strategy, accumulate=9))  # shares of 3 and 4 images
        jobs.append(job(f"norm-{strategy}", 2, strategy, norm=True))
    with (
        pytest.raises(ProcessFailed, match=r"process 2 of 2: image 7 cannot be read"),
        launched(2, work_and_fail, jobs),
    ):
        work_and_fail(jobs)
    shutil.copy(root / "two-one" / "last.ckpt", root / "two-one" / "half.ckpt")
    work([job("two-one", 1)])
    return root


def ranks(folder):
    """What each of two processes ended with."""
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def compare(one, two):
    first, second = (load_checkpoint(folder / "last.ckpt") for folder in (one, two))
    for name, value in first["model"].items():
        assert type(second["model"][name]) is torch.Tensor
        # The outputs reach the loss as float32.
        torch.testing.assert_close(second["model"][name], value, rtol=0, atol=1e-9)
    for number, state in first["optimizer"]["state"].items():
        torch.testing.assert_close(second["optimizer"]["state"][number], state, rtol=0, atol=1e-9)
    assert first["optimizer"]["param_groups"] == second["optimizer"]["param_groups"]
    for row, other in zip(first["rows"], second["rows"], strict=True):
        assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-6)
        assert (other["train_accuracy"], other["val_accuracy"]) == (row["train_accuracy"], row["val_accuracy"])


def test_sharded_training_is_that_of_one_process(ends):
    compare(ends / "alone", ends / "pair")
    pair = ranks(ends / "pair")
    assert all(all(each["sharded"]) for each in pair)
    weights = load_checkpoint(ends / "pair" / "last.ckpt")["model"]
    for name, kept in pair[0]["mask"].items():
        assert torch.equal(weights[name] == 0, ~kept)


@pytest.mark.parametrize("order", ["one-two", "two-one"])
def test_a_training_goes_on_with_another_number_of_processes(ends, order):
    assert load_checkpoint(ends / order / "half.ckpt")["epoch"] == 2
    compare(ends / "alone", ends / order)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_more_parts_than_images_in_a_share(ends, strategy):
    compare(ends / "alone", ends / f"parts-{strategy}")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_processes_measure_with_the_statistics_of_the_first(ends, strategy):
    first, second = ranks(ends / f"norm-{strategy}")
    saved = load_checkpoint(ends / f"norm-{strategy}" / "last.ckpt")["model"]
    assert first["rows"][-1]["val_accuracy"] == second["rows"][-1]["val_accuracy"] == first["accuracy"]
    for name, buffer in first["buffers"].items():
        assert torch.equal(buffer, second["buffers"][name])
        assert torch.equal(buffer, saved[name])
    assert first["buffers"]["1.running_mean"].abs().sum() > 0


def test_blocks_are_units_unless_they_share_weights():
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(3)))
    model = nn.ModuleDict({"stem": nn.Linear(4, 4), "blocks": blocks, "head": nn.Linear(4, 4)})
    assert units(model, least=30) == [blocks[2], blocks[1], blocks[0]]
    assert units(model, least=41) == []
    model["head"].weight = blocks[1][2].weight
    assert units(model, least=30) == [blocks[2], blocks[0]]
