"""Averages of weights against sums over what every step and epoch left, and which network is measured."""

import copy

import pytest
import torch
from torch import nn

import pathex
from pathex.pruning import dynamic
from pathex.train import Feed, check_recipe, evaluate, load_checkpoint
from refusals import refused
from training_in_processes import CPU, accuracy, trained


def recorded(network, images, folder, average, **options):
    """A training, its weights after every step and every epoch, and its rows."""
    after_steps, after_epochs = [], []

    def watch(model, optimizer):
        optimizer.register_step_post_hook(lambda *_: after_steps.append(copy.deepcopy(dict(model.state_dict()))))

    def note(kind, _):
        if kind == "epoch":
            after_epochs.append(after_steps[-1])

    held_out = Feed(images, images.test, device=CPU, batch_size=3)
    more = {"prepare": watch, "on_event": note, "validation": held_out}
    model, rows = trained(network, images, folder, average=average, more=more, **options)
    return model, rows, after_steps, after_epochs, held_out


def test_a_moving_average_ends_the_training_and_is_measured(network, images, tmp_path):
    model, rows, states, _, held_out = recorded(network, images, tmp_path, "ema", average_options={"decay": 0.8})
    assert len(states) == 20
    for name, value in model.state_dict().items():
        expected = states[0][name].double()
        for state in states[1:]:
            expected = 0.8 * expected + 0.2 * state[name].double()
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
            assert not torch.equal(value, states[-1][name])
    assert rows[-1]["val_accuracy"] == evaluate(model, held_out, accuracy())
    saved = load_checkpoint(tmp_path / "last.ckpt")
    assert all(torch.equal(saved["model"][name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("frozen", [False, True])
def test_the_mean_of_epochs_has_statistics_of_its_own(network, images, tmp_path, frozen):
    options = {"average_options": {"start": 0.5}, "freeze_batchnorm": frozen}
    model, rows, _, states, held_out = recorded(network, images, tmp_path, "swa", **options)
    for name, value in model.state_dict().items():
        if name.endswith((".weight", ".bias")):
            expected = (states[2][name].double() + states[3][name].double()) / 2  # of epochs 3 and 4
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    batches = [x for x, _ in Feed(images, images.train, device=CPU, batch_size=8).in_order()]
    with torch.no_grad():
        seen = [nn.functional.conv2d(x, model.state_dict()["0.weight"]) for x in batches]
    means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    found = model.state_dict()["1.running_mean"]
    assert torch.equal(found, torch.zeros(4)) if frozen else torch.allclose(found, means, atol=1e-5)
    assert rows[-1]["val_accuracy"] == evaluate(model, held_out, accuracy())


def test_an_average_keeps_the_zeros_of_the_last_mask(network, images, tmp_path):
    handles = []

    def prepare(model, optimizer):
        mask = pathex.Mask({"5.weight": torch.rand(4, 144, generator=torch.Generator().manual_seed(0)) < 0.3})
        options = {"steps": 20, "every": 3, "fraction": 0.5, "until": 1.0}
        handles.append(dynamic.attach(model, mask, optimizer, method="set", **options))
        return handles[-1]

    model, _ = trained(network, images, tmp_path, average="ema", more={"prepare": prepare})
    assert handles[0].updates == 6
    assert torch.equal(model.state_dict()["5.weight"] != 0, handles[0].mask["5.weight"])


def test_options_are_checked():
    with refused(r"decay is 1; allowed: a number in \[0, 1\)"):
        check_recipe("average", "ema", {"decay": 1})
    with refused("unknown option of average 'swa' 'decay'"):
        check_recipe("average", "swa", {"decay": 0.9})
