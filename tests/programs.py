"""Networks made of operators one after another, in float64: the graph is the module, the replay its derivative."""

import torch
import torch.nn.functional as F
from torch import nn

from brute_force.cases import Beside
from pathex.graph import Interpreter, trace
from pathex.paths import record, replay

SHAPE = (4, 4, 4)


def _halves_swapped(layer, y, z):
    first, second = y.chunk(2, 1)
    return torch.cat([second, z[:, :2] * 0.5 + first], 1)


def _written_view(layer, y, z):
    y = y.clone()
    y[:, 1:3, ::2].mul_(-0.5)
    y[:, 0] = z[:, 3]
    return y


def _written_in_place(layer, y, z):
    y.mul_(0.5)
    return y.add_(z, alpha=2)


def _later_write(layer, y, z):
    y = y * 1.5
    turned = y.transpose(2, 3)
    y[:, :2].neg_()
    return turned + z


def _scaled(y, dims):
    """A normalisation with the derivative that paths have: scale and mean are those that were recorded."""
    variance, mean = (part.detach() for part in torch.var_mean(y, dims, correction=0, keepdim=True))
    return (y - mean) * (variance + 1e-5).rsqrt()


LAYERS = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 2, stride=2),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "fully connected": lambda: nn.Linear(16, 16),
    "excited": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "prelu": lambda: nn.PReLU(4, init=0.3),
}
# From the layer of a step, if it has one, and two earlier values.
LINEARISED = {
    **dict.fromkeys(("conv", "depthwise", "batch norm", "prelu"), lambda layer, y, z: layer(y)),
    "transposed": lambda layer, y, z: F.avg_pool2d(layer(y), 2),
    "fully connected": lambda layer, y, z: layer(y.flatten(2)).unflatten(2, (4, 4)),
    "strided and up": lambda layer, y, z: F.interpolate(y[:, :, ::2, ::2], scale_factor=2, mode="bilinear"),
    "nearest": lambda layer, y, z: F.interpolate(F.adaptive_avg_pool2d(y, 2), scale_factor=2),
    "relu in place": lambda layer, y, z: F.relu_(y * 1),
    "leaky": lambda layer, y, z: F.leaky_relu(y, 0.2),
    "bounded": lambda layer, y, z: y.clamp(-0.7, 0.9) + F.hardtanh(y, -0.5, 0.5) + F.relu6(4 * y) / 2,
    "gelu": lambda layer, y, z: F.gelu(y),
    "silu": lambda layer, y, z: F.silu(y, inplace=False),
    "max pool": lambda layer, y, z: F.max_pool2d(y, 3, 1, 1),
    "adaptive max pool": lambda layer, y, z: F.adaptive_max_pool2d(y, 2).repeat(1, 1, 2, 2),
    "mean pool": lambda layer, y, z: F.avg_pool2d(y, 3, 1, 1, count_include_pad=False),
    "excited": lambda layer, y, z: y * layer(z).mean((2, 3), keepdim=True).sigmoid(),
    "shares": lambda layer, y, z: y.softmax(1),
    "mixed": lambda layer, y, z: y.flatten(2).transpose(1, 2).tanh().transpose(1, 2).unflatten(2, (4, 4)),
    "product": lambda layer, y, z: y * z,
    "square": lambda layer, y, z: y * y,
    "matrices": lambda layer, y, z: y @ z.mT * 0.3,
    "einsum": lambda layer, y, z: torch.einsum("nchw,nckw->nchk", y, z) / 3,
    "attention": lambda layer, y, z: F.scaled_dot_product_attention(y, z, y - z),
    "difference": lambda layer, y, z: 1 - y - z,
    "larger": lambda layer, y, z: torch.maximum(y, z),
    "largest": lambda layer, y, z: y.amax(1, keepdim=True) + y.square().sum(1, keepdim=True) - z,
    "chosen": lambda layer, y, z: torch.where(z > 0.1, y, -z),
    "filled": lambda layer, y, z: F.pad(y, (1, 0, 0, 1))[:, :, 1:, :4].masked_fill(torch.eye(4) > 0.5, 0.0),
    "quotient": lambda layer, y, z: y / (1.5 + z.square()),
    "rolled": lambda layer, y, z: y.roll(1, 2).flip(3) + z.permute(0, 1, 3, 2),
    "halves swapped": _halves_swapped,
    "written view": _written_view,
    "later write": _later_write,
    "layer norm": lambda layer, y, z: F.layer_norm(y, (4,)),
    "group norm": lambda layer, y, z: F.group_norm(y, 1),
}
TO_PATHS = {
    "layer norm": lambda layer, y, z: _scaled(y, -1),
    "group norm": lambda layer, y, z: _scaled(y, (1, 2, 3)),
}
OPERATORS = {
    **LINEARISED,
    "written in place": _written_in_place,  # no derivative by autograd
    "unit length": lambda layer, y, z: F.normalize(y, dim=1),
    "rolled alone": lambda layer, y, z: y.roll(1, 2).flip(3),
}


class Program(nn.Module):
    """Each step, the name of an operator and two numbers, takes two earlier values and adds one."""

    to_paths = False

    def __init__(self, steps):
        super().__init__()
        torch.manual_seed(len(steps))
        self.steps = steps
        self.layers = nn.ModuleDict({str(i): LAYERS[name]() for i, (name, *_) in enumerate(steps) if name in LAYERS})
        self.head = nn.Linear(4, 3)
        self.double().eval()
        for norm in self.layers.values():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_var.uniform_(0.5, 2.0)
                norm.running_mean.normal_()

    def forward(self, x):
        values = [x * 1.0]
        for place, (name, first, second) in enumerate(self.steps):
            step = TO_PATHS[name] if self.to_paths and name in TO_PATHS else OPERATORS[name]
            layer = self.layers[str(place)] if name in LAYERS else None
            values.append(step(layer, values[-1 - first % len(values)], values[-1 - second % len(values)]))
        return self.head(values[-1].mean((2, 3)))


# For each operator a network in which it stands between layers.
GROUPS = [list(LINEARISED)[start::4] for start in range(4)]


def beside(names):
    return Beside({n: Program([("conv", 0, 0), ("leaky", 0, 0), (n, 0, 1), ("conv", 0, 0)]) for n in names})


def images(count=3, seed=0):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equal(found, truth):
    torch.testing.assert_close(found.detach(), truth.detach(), rtol=1e-9, atol=1e-10)


def assert_computes(model, x):
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    truth = model(x.clone())
    graph = trace(model, x)
    assert_equal(Interpreter(graph, lambda name: own[name].detach(), torch.float64).run(x), truth)
    assert_equal(record(model, x, calibration="running").output, truth)


def derivative(model, x, z):
    """Of all outputs along z, as paths have it. Images have nothing to do with each other."""
    programs = [module for module in model.modules() if isinstance(module, Program)]
    for program in programs:
        program.to_paths = True
    leaf = x.clone().requires_grad_()
    rows = [torch.autograd.grad(total, leaf, retain_graph=True)[0] for total in model(leaf).sum(0).flatten()]
    for program in programs:
        del program.to_paths
    return torch.stack([(row * z).sum((1, 2, 3)) for row in rows], 1)


def assert_linearises(model, x):
    z = images(len(x), seed=1)
    recording = record(model, x, calibration="running", smooth="tangent")
    assert_equal(replay(model, z, recording, coefficients="plain").flatten(1), derivative(model, x, z))
