"""Factories of networks, as users write them."""

import os
import signal
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn


def small(seed=0):
    """For grey images of 4 pixels, of three classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


class Net(nn.Module):
    def __init__(self, num_classes, in_channels=3, hidden=4):
        super().__init__()
        self.fc = nn.Linear(in_channels, num_classes)
        self.hidden = hidden


def fixed():
    return nn.Linear(2, 3)


def open_ended(**kwargs):
    return nn.Linear(2, kwargs["num_classes"]) if set(kwargs) == {"num_classes"} else Net(**kwargs)


def broken(num_classes):
    raise RuntimeError("two\nlines")


def wrong(num_classes):
    return num_classes


def tiny(num_classes, in_channels, width=2):
    """For images of 8 pixels."""
    first = {"conv": nn.Conv2d(in_channels, width, 3, bias=False), "norm": nn.BatchNorm2d(width), "relu": nn.ReLU()}
    second = {"conv2": nn.Conv2d(width, width, 3, bias=False), "relu2": nn.ReLU(), "flat": nn.Flatten()}
    return nn.Sequential(OrderedDict(first | second | {"fc": nn.Linear(16 * width, num_classes)}))


def transposed(num_classes, in_channels):
    """For images of 8 pixels, which become larger."""
    layers = {"up": nn.ConvTranspose2d(in_channels, 4, 2, stride=2), "relu": nn.ReLU(), "pool": nn.AvgPool2d(4)}
    return nn.Sequential(OrderedDict(layers | {"flat": nn.Flatten(), "fc": nn.Linear(64, num_classes)}))


def plain(num_classes, in_channels):
    """For images of 8 pixels, which meet nowhere: no batch statistics."""
    convolutions = (nn.Conv2d(in_channels, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8, num_classes))


def dies(num_classes, in_channels, flag=None, **options):
    """Kills the process that makes it: always, or only where the flag is not there."""
    from pathex.models import create

    if flag is None or not Path(flag).exists():
        if flag is not None:
            Path(flag).touch()
        os.write(1, b"last words\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return create("resnet20", num_classes, in_channels, **options)


number = 3
