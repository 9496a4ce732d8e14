"""A data set of a few random images, and a network small enough to train in milliseconds."""

import pytest
import torch
from torch import nn

from training_in_processes import Images, Split


@pytest.fixture
def images():
    return Images(Split(34, 0), Split(8, 1))


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers = (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3))
        return nn.Sequential(*layers, nn.Linear(144, 4))
