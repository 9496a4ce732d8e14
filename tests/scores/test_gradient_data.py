"""What SNIP, iterative SNIP, FORCE and GraSP read: batches, labels, options; and what they refuse."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pathex
from brute_force.cases import Wired, assert_close, random_mask
from brute_force.gradients import TWINS, labelled
from pathex.errors import InvalidInput, UnknownName, UnsupportedOperation
from snapshots import unchanged
from variants import LOSSES

every_method = pytest.mark.parametrize("method", LOSSES)


@every_method
def test_on_batch_statistics_the_batches_count_but_not_their_order(model, images, method):
    labels = torch.arange(12) % 3
    halves = list(zip(images.split(6), labels.split(6), strict=True))
    first = pathex.score(model, method, halves)
    assert_close(pathex.score(model, method, halves[::-1]), first)
    assert_close(pathex.score(model, method, [(x.flip(0), y.flip(0)) for x, y in halves]), first)
    whole = pathex.score(model, method, (images, labels))
    assert any(not torch.allclose(whole[name], score, rtol=1e-3) for name, score in first.items())


@every_method
def test_pixels_without_a_class_do_not_count(method):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).double()
    x, y = torch.randn(4, 2, 5, 5, dtype=torch.float64), torch.randint(0, 3, (4, 5, 5))
    y[0, 2:], y[1] = 255, 255
    whole = pathex.score(model, method, (x, y))
    parts = pathex.score(model, method, list(zip(x.split(1), y.split(1), strict=True)))
    assert_close(parts, whole)
    logs = model(x).log_softmax(1)
    torch.stack([logs[n, y[n, i, j], i, j] for n, i, j in (y != 255).nonzero().tolist()]).mean().backward()
    if method != "grasp":
        assert_close(whole, {n: (p * p.grad).abs().detach() for n, p in model.named_parameters() if "weight" in n})
    with pytest.raises(InvalidInput, match="every label is 255"):
        pathex.score(model, method, (x, torch.full_like(y, 255)))


@pytest.mark.parametrize("method", [*LOSSES, "prospr", "fisher-diagonal"])
def test_maps_of_labels_outside_the_classes_are_refused(method):
    model, x, y = nn.Sequential(nn.Conv2d(2, 3, 1)), torch.randn(4, 2, 3, 3), torch.full((4, 3, 3), 2)
    y[2, 1, 2] = 3
    with pytest.raises(InvalidInput, match="label 3 is no class of an output with 3 classes"):
        pathex.score(model, method, (x, y))
    with pytest.raises(InvalidInput, match=r"labels \([14],\) .* do not fit outputs"):
        pathex.score(model, method, (x, y[:, 0, 0]))


@pytest.mark.parametrize("method", [*LOSSES, "fisher-diagonal"])
def test_labels_come_as_numbers_probabilities_or_with_their_own_loss(method):
    model, [(x, y)] = labelled("mlp", 38, (6,))
    expected = pathex.score(model, method, (x, y))
    for labels in (y.double(), y.to(torch.uint8), F.one_hot(y, 2).double()):
        assert_close(pathex.score(model, method, [(x, labels)]), expected)
    if method == "fisher-diagonal":
        return
    own = pathex.score(model, method, (x, y), loss=F.cross_entropy)
    assert_close(own, expected)
    squared = pathex.score(model, method, (x, y), loss=lambda out, labels: (out[:, 0] - labels).square().mean())
    assert any(not torch.allclose(squared[name], score) for name, score in expected.items())


@every_method
def test_redrawn_weights_are_those_that_are_scored(method):
    model, batches = labelled("mlp", 40)
    drawn = copy.deepcopy(model)
    keep = random_mask(model, 40)

    def redraw(name, weight, source):
        return torch.randn(weight.shape, generator=source, dtype=weight.dtype)

    def take(name, weight, source):
        entry = redraw(name, weight, source)
        with torch.no_grad():
            drawn.get_parameter(name).copy_(entry)
        return entry

    found = pathex.score(model, method, batches, mask=pathex.Mask(keep), redraw=redraw, seed=5)
    pathex.score(model, "snip", batches, redraw=take, seed=5)
    assert_close(found, TWINS[method](drawn, batches, keep))


X, Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])
BAD = {
    "no labels": ({"data": X}, r"method '{method}' needs labels: data must deliver \(x, y\)"),
    "a batch without labels": ({"data": [(X, Y), X]}, "method '{method}' needs labels"),
    "label too large": ({"data": (X, Y + 1)}, r"label 2 is no class of an output with 2 classes \(0 to 1\)"),
    "negative label": ({"data": (X, Y - 1)}, "label -1 is no class"),
    "labels of another shape": (
        {"data": (X, Y[:, None])},
        r"labels \(4, 1\) of torch.int64 do not fit outputs \(4, 2\)",
    ),
    "fractions of classes": ({"data": [(X, Y + 0.5)]}, r"labels \(4,\) of torch.float32 do not fit .* probabilities"),
    "probabilities of other classes": ({"data": [(X, torch.rand(4, 3))]}, r"\(4, 3\) of torch.float32 do not fit"),
    "a single value a channel": ({"data": [(X[:3], Y[:3]), (X[3:], Y[3:])]}, "BatchNorm .* larger batches, or calib"),
    "unknown calibration": ({"calibration": "eval"}, "unknown calibration 'eval'. Known: batch, running, train"),
    "loss in words": ({"loss": "mse"}, "loss must be a function .* not 'mse'"),
    "unknown option": ({"temprature": 3}, "'{method}' has no option 'temprature'. Known: calibration"),
}


@pytest.mark.parametrize("case", BAD)
@every_method
def test_bad_input_is_named(method, case):
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).train()
    arguments, message = BAD[case]
    with unchanged(model), pytest.raises((InvalidInput, UnknownName), match=message.format(method=method)):
        pathex.score(model, method, **{"data": (X, Y), **arguments})


def _checkpointed(net, x):
    return net.fc(checkpoint(net.second, net.first(x).relu(), use_reentrant=False))


@pytest.mark.parametrize("method", ["snip", "grasp", "ntk-diagonal"])
def test_checkpoints_would_run_again_without_the_mask_and_paths_run_through_them(method):
    layers = {"first": nn.Linear(6, 8), "second": nn.Linear(8, 8), "fc": nn.Linear(8, 3)}
    model, x = Wired(_checkpointed, **layers), torch.randn(4, 6)
    data = (x, torch.arange(4) % 3)
    with pytest.raises(UnsupportedOperation, match="switch gradient checkpointing off"):
        pathex.score(model, method, data)
    pathex.score(model, "magnitude", data)
    plain = nn.Sequential(model.first, nn.ReLU(), model.second, model.fc)
    found, expected = pathex.score(model, "px", x), pathex.score(plain, "px", x)
    for score, same in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(score, same)
