"""Learning rates by closed forms."""

import math
from fractions import Fraction

import pytest
from torch import nn, zeros
from torch.optim import SGD, AdamW

from pathex.train import TrainOptions
from pathex.train.schedule import make_optimizer, milestone_epochs


def test_milestones_are_the_nearest_ends_of_an_epoch():
    for epochs, fractions, expected in (
        (160, (0.5, 0.75), [80, 120]),
        (160, (0.375, 0.75), [60, 120]),
        (182, (0.5, 136 / 182), [91, 136]),
        (1, (0.5, 0.75), [1, 1]),
    ):
        assert milestone_epochs(epochs, fractions) == expected


def learned(epochs, **options):
    """The learning rates of two groups, by epoch."""
    groups = [{"params": [nn.Parameter(zeros(1))], "lr": lr} for lr in (0.5, 2.0)]
    optimizer, schedule = make_optimizer(groups, TrainOptions(epochs, **options))
    rows = []
    for _ in range(epochs):
        rows.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    return rows


@pytest.mark.parametrize("warmup", [0, 0.05, 0.3, 0.99])
@pytest.mark.parametrize("epochs", [0, 1, 2, 7, 20])
@pytest.mark.parametrize("name", ["steps", "cosine"])
def test_a_schedule_is_its_formula(name, epochs, warmup):
    first = max(0, min(epochs - 1, int(Fraction(str(warmup)) * epochs + Fraction(1, 2))))
    falls = [max(1, int(Fraction(part) * epochs + Fraction(1, 2))) for part in ("1/4", "3/4")]
    rows = learned(epochs, lr_schedule=name, warmup=warmup, milestones=(0.25, 0.75), gamma=0.2)
    for epoch, row in enumerate(rows):
        if epoch < first:
            factor = (epoch + 1) / (first + 1)
        elif name == "cosine":
            factor = (1 + math.cos(math.pi * (epoch - first) / (epochs - first))) / 2
        else:
            factor = 0.2 ** sum(fall <= epoch for fall in falls)
        assert row == pytest.approx([0.5 * factor, 2 * factor], rel=1e-12, abs=1e-14)


def test_settings_reach_the_optimizers():
    groups = [{"params": [nn.Parameter(zeros(1))]}]
    options = {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.2}
    sgd, _ = make_optimizer(groups, TrainOptions(2, nesterov=True, **options))
    adamw, _ = make_optimizer(groups, TrainOptions(2, optimizer="adamw", **options))
    assert (type(sgd), type(adamw)) == (SGD, AdamW)
    assert sgd.param_groups[0].items() >= {**options, "nesterov": True}.items()
    assert adamw.param_groups[0].items() >= {"lr": 0.3, "betas": (0.7, 0.999), "weight_decay": 0.2}.items()
