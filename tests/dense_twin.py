"""What sparse training must equal: the network in torch, with zeros for removed weights and in their gradients."""

import copy

import torch
import torch.nn.functional as F

from pathex import Mask
from pathex.sparse import convert


def random_mask(model, density=0.3, removed=(), whole=()):
    """Some entries of each weight; none of the layers that are removed, all of those that are whole."""
    entries = {}
    for path, module in model.named_modules():
        if type(module) in (torch.nn.Conv2d, torch.nn.Linear):
            part = 0.0 if path in removed else 1.0 if path in whole else density
            entries[f"{path}.weight"] = torch.rand(module.weight.shape) < part
    return Mask(entries)


def random_state(model):
    """Random factors, terms and statistics in place of ones and zeros."""
    with torch.no_grad():
        for name, entry in [*model.named_parameters(), *model.named_buffers()]:
            if entry.ndim == 1:
                entry.copy_(torch.rand(entry.shape) + 0.5 if "bias" not in name else torch.randn(entry.shape))
    return model


def twin(model, mask):
    """A copy of which only what is kept is not zero, and trains."""
    dense = copy.deepcopy(model)
    for name, entry in dense.named_parameters():
        if name in mask:
            entry.data.mul_(mask[name])
            if entry.requires_grad:
                entry.register_hook(lambda grad, kept=mask[name]: grad * kept)
    return dense


def pair(model, mask, x, threads=1, choice="sparse"):
    """The network that trains by its kept weights, and its twin."""
    return convert(model, mask, x, threads=threads, choice=choice), twin(model, mask)


def images(count=6, size=12):
    return torch.randn(count, 3, size, size)


def loss_of(model, x, labels=5):
    """Cross entropy, with classes that are drawn in the same way for the same number of images."""
    y = model(x).flatten(1)
    return F.cross_entropy(y, torch.arange(len(y)) * 7 % min(labels, y.shape[1]))


def gradients(model, mask):
    """By name; of masked weights those of the kept ones, None where there is none."""
    found = {}
    for name, entry in model.named_parameters():
        grad = entry.grad
        found[name] = grad if grad is None or name not in mask or grad.ndim == 1 else grad[mask[name]]
    return found


def assert_near(found, expected, tolerance, name="", floor=0.0, own=0.0):
    """Off by at most a part of the largest number, and by what torch itself is off."""
    assert found.shape == expected.shape, name
    largest = max(off(expected, torch.zeros_like(expected)), floor)
    assert off(found, expected) <= tolerance * largest + own, f"{name}: {off(found, expected):.2e} of {largest:.2e}"


def off(found, expected):
    return (found.detach().double() - expected.detach().double()).abs().max().item() if expected.numel() else 0.0


def assert_same_gradients(net, dense, mask, tolerance, single=None):
    """Within a part of the largest, and twice what torch in single precision is off."""
    found, expected = gradients(net, mask), gradients(dense, mask)
    own = expected if single is None else gradients(single, mask)
    assert found.keys() == expected.keys()
    largest = max(off(grad, torch.zeros_like(grad)) for grad in expected.values() if grad is not None)
    for name, grad in expected.items():
        assert (found[name] is None) == (grad is None), name
        if grad is not None:
            assert_near(found[name], grad, tolerance, name, largest, 2 * off(own[name], grad))


def assert_same_state(net, dense, tolerance=1e-8):
    """Parameters and buffers, with the dense names and shapes."""
    found, expected = net.state_dict(), dense.state_dict()
    assert list(found) == list(expected)
    for name, entry in expected.items():
        assert found[name].dtype == entry.dtype
        assert_near(found[name], entry, tolerance, name, floor=1.0)


def assert_same_start(net, dense, mask, x, loss=loss_of):
    """In float32: first loss within 1e-6, first gradients within 1e-5 of their maximum."""
    exact, losses = copy.deepcopy(dense).double(), []
    for each, given in ((net, x), (dense, x), (exact, x.double())):
        torch.manual_seed(0)
        losses.append(loss(each, given))
        losses[-1].backward()
    assert abs(losses[0].item() - losses[1].item()) <= 1e-6 * max(1.0, losses[1].item())
    assert_same_gradients(net, exact, mask, 1e-5, dense)


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)


def assert_same_steps(net, dense, x, steps=20, optimizer=sgd, loss=loss_of, tolerance=1e-8):
    """Losses and states over some steps in float64, each with other images and the same random numbers."""
    optimizers = [optimizer(each) for each in (net, dense)]
    for step in range(steps):
        losses = []
        for each, chosen in zip((net, dense), optimizers, strict=True):
            torch.manual_seed(step)
            chosen.zero_grad()
            losses.append(loss(each, x.roll(step, -1) * (1 + 0.1 * step)))
            losses[-1].backward()
            chosen.step()
        assert abs(losses[0].item() - losses[1].item()) <= tolerance * max(1.0, losses[1].item())
    assert_same_state(net, dense, tolerance)


def assert_trains_alike(make, x, density=0.3, loss=loss_of, threads=1, **parts):
    """A network from a factory: first loss and gradients in float32, 20 steps and evaluation after them in float64."""
    model = random_state(make())
    mask = random_mask(model, density, **parts)
    assert_same_start(*pair(model, mask, x, threads), mask, x, loss)
    model, x = model.double(), x.double()
    net, dense = pair(model, mask, x, threads)
    assert_same_steps(net, dense, x, loss=loss)
    with torch.no_grad():
        assert_near(net.eval()(x), dense.eval()(x), 1e-8)
    return net, dense, mask
