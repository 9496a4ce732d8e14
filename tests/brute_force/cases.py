"""Networks small enough to count every path, with random float64 parameters and statistics."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import nn


class Branches(nn.Module):
    """Branches on the same input, summed or concatenated over channels."""

    def __init__(self, *branches, join="sum"):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.join = join

    def forward(self, x):
        outputs = [branch(x) for branch in self.branches]
        return torch.cat(outputs, 1) if self.join == "cat" else torch.stack(outputs).sum(0)


class Beside(nn.ModuleDict):
    """Networks by name on the same images, their outputs joined: they are traced as one."""

    def forward(self, x):
        return torch.cat([network(x).flatten(1) for network in self.values()], 1)


class Wired(nn.Module):
    """Named modules and parameters, and what the forward pass does with them and its input."""

    def __init__(self, form, **parts):
        super().__init__()
        self.form = form
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.form(self, x)


@dataclass(frozen=True)
class Case:
    """A network and the shape of one of its images; ``scale`` widens the images so that saturating slopes saturate."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    scale: float = 1.0


def perceptron(*sizes, activation=nn.ReLU, bias=True):
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b, bias), activation())]
    return nn.Sequential(*layers[:-1])


def _residual():
    body = nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(inplace=True),
        nn.Conv2d(2, 2, 3, padding=1, bias=False),
        nn.BatchNorm2d(2),
    )
    shortcut = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2))
    stem = [nn.Conv2d(1, 2, 2, bias=False), nn.BatchNorm2d(2), nn.ReLU(inplace=True)]
    head = [nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)]
    return nn.Sequential(*stem, Branches(body, shortcut), *head)


def _shared():
    twice = nn.Conv2d(1, 1, 3, padding=1)
    return nn.Sequential(twice, nn.ReLU(), twice, nn.ReLU(), nn.Flatten(), nn.Linear(9, 2))


def _dilated():
    first, second = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.Conv2d(4, 2, 2, dilation=2, padding=(1, 2))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(30, 2))


def _max_pool():
    first, second = nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 2, padding=1)
    pools = nn.MaxPool2d(3, stride=2, padding=1), nn.MaxPool2d(2, stride=1)
    return nn.Sequential(first, nn.ReLU(), pools[0], second, nn.ReLU(), pools[1], nn.Flatten(), nn.Linear(8, 2))


def _average_branch():
    pooled = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), nn.Conv2d(1, 1, 1))
    plain = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    branches = Branches(nn.Conv2d(1, 1, 3, padding=1), pooled, plain, join="cat")
    return nn.Sequential(branches, nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def _depthwise():
    deep, point = nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False), nn.Conv2d(2, 3, 1, bias=False)
    norms = nn.BatchNorm2d(2), nn.BatchNorm2d(3)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(deep, norms[0], nn.ReLU6(), point, norms[1], nn.ReLU6(), pool, nn.Flatten(), nn.Linear(3, 2))


def _transposed():
    up = nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), up, nn.ReLU(), nn.ConvTranspose2d(4, 1, 2, dilation=2))


def _prelu():
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.PReLU(2), nn.Flatten(), perceptron(8, 3, 2, activation=nn.PReLU))


def _vector_norm():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2), nn.BatchNorm1d(2))


_mlp = partial(perceptron, 3, 4, 3, 2)
CASES = {
    "mlp": Case(_mlp, (3,)),
    "mlp-without-bias": Case(partial(_mlp, bias=False), (3,)),
    "leaky": Case(partial(_mlp, activation=lambda: nn.LeakyReLU(0.3)), (3,)),
    "prelu": Case(_prelu, (1, 3, 3)),
    "relu6": Case(partial(_mlp, activation=nn.ReLU6), (3,), scale=3.0),
    "hardtanh": Case(partial(_mlp, activation=lambda: nn.Hardtanh(-0.7, 1.2)), (3,)),
    "vector-norm": Case(_vector_norm, (3,)),
    "dilated": Case(_dilated, (2, 5, 5)),
    "residual": Case(_residual, (1, 3, 3)),
    "max-pool": Case(_max_pool, (1, 5, 5)),
    "average-branch": Case(_average_branch, (1, 4, 4)),
    "depthwise": Case(_depthwise, (2, 3, 3), scale=4.0),
    "transposed": Case(_transposed, (1, 2, 2)),
    "shared": Case(_shared, (1, 3, 3)),
}


def build(name, seed, images=3):
    """The network of a case in float64 and in train mode, and ``images`` of its inputs."""
    case = CASES[name]
    model = case.make().double()
    generator = draw(model, seed)
    x = case.scale * torch.randn(images, *case.shape, generator=generator, dtype=torch.float64)
    return model, x


def draw(model, seed):
    """Fill every parameter and statistic; the generator, to go on with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for entry in model.parameters():
            entry.copy_(torch.randn(entry.shape, generator=generator, dtype=torch.float64))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return generator


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def measure(model, x, entries=None):
    """Run once: each BatchNorm stores the moments of what reaches it and normalises by them, layer after layer."""

    def take_moments(norm, arriving):
        values = arriving[0].transpose(0, 1).flatten(1)
        norm.running_mean = values.mean(1)
        norm.running_var = ((values - values.mean(1, keepdim=True)) ** 2).mean(1)

    hooks = [norm.register_forward_pre_hook(take_moments) for norm in norms(model)]
    with torch.no_grad():
        torch.func.functional_call(model, entries or {}, (x,))
    for hook in hooks:
        hook.remove()


def prunable(model):
    """Names of the weights of convolutions and linear layers, a shared weight once."""
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    weights = {id(module.weight) for module in model.modules() if isinstance(module, kinds)}
    return [name for name, entry in model.named_parameters() if id(entry) in weights]


def random_mask(model, seed, density=0.8):
    """A random boolean mask over the prunable weights."""
    generator = torch.Generator().manual_seed(seed)
    entries = dict(model.named_parameters())
    return {name: torch.rand(entries[name].shape, generator=generator) < density for name in prunable(model)}


def masked(model, mask):
    """Every parameter by name, detached, zero where the mask drops it."""
    entries = {name: entry.detach() for name, entry in model.named_parameters()}
    return entries | {name: entries[name] * keep for name, keep in (mask or {}).items()}


def assert_close(actual, expected, rtol=1e-10):
    """Equal up to rounding, relative to the layer: terms of both signs cancel in single entries."""
    assert sorted(actual) == sorted(expected)
    assert any(score.abs().max() > 0 for score in expected.values())
    for name, score in expected.items():
        floor = 0.01 * rtol * score.abs().max().item()
        found = actual[name].to(score)
        torch.testing.assert_close(found, score, rtol=rtol, atol=floor, msg=lambda m, n=name: f"{n}: {m}")
