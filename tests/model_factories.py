"""Factories of networks, as users write them."""

from torch import nn


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
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * width, num_classes),
    )


number = 3
