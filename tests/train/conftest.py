"""A data set of a few random images, and a network small enough to train in milliseconds."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn


class LazySplit:
    """A split that holds its images out of sight, as one that decodes files does."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self._pixels = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
        self.labels = torch.arange(count) % 4

    def __len__(self):
        return len(self.labels)

    def images(self, indices):
        return self._pixels[indices]


class Split(LazySplit):
    @property
    def data(self):
        return self._pixels


@dataclass
class Images:
    train: LazySplit
    test: LazySplit

    image_size, in_channels = 8, 3

    def on(self, device):
        return self

    def resized(self, pixels):
        return pixels

    def normalise(self, pixels):
        return pixels.float() / 128 - 1


@pytest.fixture
def images():
    return Images(Split(34, 0), Split(8, 1))


@pytest.fixture
def lazy_images():
    return Images(LazySplit(34, 0), LazySplit(8, 1))


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(144, 4),
        )
