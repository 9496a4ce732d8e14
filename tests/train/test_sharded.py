import shutil

import pytest
import torch
from torch import nn

from pathex.distributed import ProcessFailed, launched
from pathex.train import load_checkpoint
from pathex.train.fsdp import units
from training_in_processes import fail, work


def carried_out(folder, devices, strategy="ddp", epochs=4, **options):
    """What each process ends with."""
    folder.mkdir(exist_ok=True)
    given = (str(folder), devices, strategy, epochs, options)
    with launched(devices, work, *given):
        work(*given[:-1], dict(options))
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(devices)]


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


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    carried_out(folder, 1)
    return folder


def test_sharded_training_is_that_of_one_process_and_goes_on_in_one(alone, tmp_path):
    pair = carried_out(tmp_path / "pair", 2, "fsdp")
    compare(alone, tmp_path / "pair")
    assert all(all(each["sharded"]) for each in pair)
    weights = load_checkpoint(tmp_path / "pair" / "last.ckpt")["model"]
    for name, kept in pair[0]["mask"].items():
        assert torch.equal(weights[name] == 0, ~kept)
    # Two epochs in two processes and two in one; and the other way round.
    for first, second in (((2, "fsdp"), (1, "ddp")), ((1, "ddp"), (2, "fsdp"))):
        folder = tmp_path / f"{first[0]}-{second[0]}"
        carried_out(folder, *first, epochs=2)
        shutil.copy(folder / "last.ckpt", folder / "half.ckpt")
        carried_out(folder, *second, epochs=4)
        assert load_checkpoint(folder / "half.ckpt")["epoch"] == 2
        weights = load_checkpoint(folder / "last.ckpt")["model"]
        for name, value in load_checkpoint(alone / "last.ckpt")["model"].items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_more_parts_than_images_in_a_share(alone, tmp_path, strategy):
    carried_out(tmp_path, 2, strategy, accumulate=9)  # shares of 3 and 4 images
    compare(alone, tmp_path)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_processes_measure_with_the_statistics_of_the_first(tmp_path, strategy):
    first, second = carried_out(tmp_path, 2, strategy, norm=True)
    saved = load_checkpoint(tmp_path / "last.ckpt")["model"]
    assert first["rows"][-1]["val_accuracy"] == second["rows"][-1]["val_accuracy"] == first["accuracy"]
    for name, buffer in first["buffers"].items():
        assert torch.equal(buffer, second["buffers"][name])
        assert torch.equal(buffer, saved[name])
    assert first["buffers"]["1.running_mean"].abs().sum() > 0


def test_an_error_in_another_process_is_one_of_the_first():
    with pytest.raises(ProcessFailed, match=r"process 2 of 2: image 7 cannot be read"), launched(2, fail, 2):
        fail(2)


def test_blocks_are_units_unless_they_share_weights():
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(3)))
    model = nn.ModuleDict({"stem": nn.Linear(4, 4), "blocks": blocks, "head": nn.Linear(4, 4)})
    assert units(model, least=30) == [blocks[2], blocks[1], blocks[0]]
    assert units(model, least=41) == []
    model["head"].weight = blocks[1][2].weight
    assert units(model, least=30) == [blocks[2], blocks[0]]
