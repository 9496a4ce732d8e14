"""The obvious twin of a reading: the Jacobian of the real module at the recorded point, by autograd."""

import copy

import torch
from torch import nn
from torch.autograd.functional import jacobian

from brute_force.cases import Wired, draw, measure
from pathex.paths import record, replay


def between(operation):
    """One operation, as a module or a function of a tensor, behind a gain of one that makes the network float64."""
    gain = nn.Parameter(torch.ones((), dtype=torch.float64))
    return Wired(lambda net, x: net.operation(x * net.gain), gain=gain, operation=operation)


class Beside(nn.Module):
    """Operations on one tensor, each flattened: a table of them is traced as one network."""

    def __init__(self, operations):
        super().__init__()
        self.names = list(operations)
        self.operations = nn.ModuleList(between(operation) for operation in operations.values())
        self.double().eval()

    def forward(self, x):
        return torch.cat([operation(x).flatten() for operation in self.operations])

    def results(self, joined, like):
        """The joined results one by one."""
        parts = joined.split([tensor.numel() for tensor in like])
        return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


def images(*shape, seed=0, scale=1.0):
    """Normal images in float64."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def channels_last(function):
    """The function of images, which gets them with their channels as the last dimension."""
    return lambda x: function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def draws(model, seed=0):
    """The model in float64 with random parameters and statistics."""
    draw(model.double(), seed)
    return model


def calibrated(model, x):
    """A copy in evaluation mode whose BatchNorms store the moments of these images."""
    twin = copy.deepcopy(model).eval()
    measure(twin, x.clone())
    return twin


def linear_map(model, x):
    """Jacobian of all outputs with respect to all inputs, as a matrix."""
    return jacobian(lambda z: model(z.clone()), x).reshape(-1, x.numel())


def assert_equal(actual, expected, name=""):
    """Equal up to rounding in float64."""
    torch.testing.assert_close(
        actual.detach(), expected.detach(), rtol=1e-9, atol=1e-11, msg=lambda message: f"{name} {message}"
    )


def assert_each_replays(operations, x, *, squares=True, squared=None):
    """Record is the forward pass, plain replay its Jacobian and the squared one its square, for each of a table.

    ``squared`` holds operations whose map is the squared replay instead.
    """
    model = Beside(operations)
    recording = record(model, x, smooth="tangent")
    z = images(*x.shape, seed=99)
    truths = [operation(x.clone()) for operation in model.operations]
    readings = [recording.output, replay(model, z, recording, coefficients="plain"), replay(model, z, recording)]
    for i, (name, *found) in enumerate(zip(operations, *(model.results(out, truths) for out in readings), strict=True)):
        matrix = linear_map(model.operations[i], x)
        square = linear_map(squared[name], x) if squared else matrix.square()
        assert_equal(found[0], truths[i], name)
        assert_equal(found[1], (matrix @ z.flatten()).view_as(truths[i]), name)
        if squares:
            assert_equal(found[2], (square @ z.flatten()).view_as(truths[i]), name)
