"""Random networks, float64: the graph is the module, the plain replay its derivative, scores are conserved."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pathex
from pathex.graph import Interpreter, trace
from pathex.paths import record, replay

SHAPE = (4, 4, 4)
Step = tuple[int, int, int]
Operator = Callable[["Wired", int, Tensor, Tensor], Tensor]


def _halves_swapped(net: "Wired", place: int, y: Tensor, z: Tensor) -> Tensor:
    first, second = y.chunk(2, 1)
    return torch.cat([second, z[:, :2] * 0.5 + first], 1)


def _written_view(net: "Wired", place: int, y: Tensor, z: Tensor) -> Tensor:
    y = y.clone()
    y[:, 1:3, ::2].mul_(-0.5)
    y[:, 0] = z[:, 3]
    return y


def _written_in_place(net: "Wired", place: int, y: Tensor, z: Tensor) -> Tensor:
    y.mul_(0.5)
    return y.add_(z, alpha=2)


def _later_write(net: "Wired", place: int, y: Tensor, z: Tensor) -> Tensor:
    y = y * 1.5
    turned = y.transpose(2, 3)
    y[:, :2].neg_()
    return turned + z


LINEARISED: dict[str, Operator] = {
    "conv": lambda net, place, y, z: net.convs[str(place)](y),
    "depthwise": lambda net, place, y, z: net.deep[str(place)](y),
    "batch norm": lambda net, place, y, z: net.norms[str(place)](y),
    "fully connected": lambda net, place, y, z: net.lines[str(place)](y.flatten(2)).unflatten(2, (4, 4)),
    "strided and up": lambda net, place, y, z: F.interpolate(y[:, :, ::2, ::2], scale_factor=2, mode="bilinear"),
    "relu in place": lambda net, place, y, z: F.relu_(y * 1),
    "leaky": lambda net, place, y, z: F.leaky_relu(y, 0.2),
    "bounded": lambda net, place, y, z: y.clamp(-0.7, 0.9),
    "gelu": lambda net, place, y, z: F.gelu(y),
    "silu": lambda net, place, y, z: F.silu(y, inplace=False),
    "max pool": lambda net, place, y, z: F.max_pool2d(y, 3, 1, 1),
    "mean pool": lambda net, place, y, z: F.avg_pool2d(y, 3, 1, 1, count_include_pad=False),
    "excited": lambda net, place, y, z: y * net.convs[str(place)](z).mean((2, 3), keepdim=True).sigmoid(),
    "shares": lambda net, place, y, z: y.softmax(1),
    "mixed": lambda net, place, y, z: y.flatten(2).transpose(1, 2).tanh().transpose(1, 2).unflatten(2, (4, 4)),
    "product": lambda net, place, y, z: y * z,
    "square": lambda net, place, y, z: y * y,
    "matrices": lambda net, place, y, z: y @ z.mT * 0.3,
    "attention": lambda net, place, y, z: F.scaled_dot_product_attention(y, z, y - z),
    "difference": lambda net, place, y, z: 1 - y - z,
    "larger": lambda net, place, y, z: torch.maximum(y, z),
    "chosen": lambda net, place, y, z: torch.where(z > 0.1, y, -z),
    "quotient": lambda net, place, y, z: y / (1.5 + z.square()),
    "rolled": lambda net, place, y, z: y.roll(1, 2).flip(3) + z.permute(0, 1, 3, 2),
    "halves swapped": _halves_swapped,
    "written view": _written_view,
    "later write": _later_write,
}
COMPUTED: dict[str, Operator] = {  # no derivative by autograd, or another one than paths have
    "written in place": _written_in_place,
    "layer norm": lambda net, place, y, z: F.layer_norm(y, (4,)),
    "group norm": lambda net, place, y, z: F.group_norm(y, 2),
    "unit length": lambda net, place, y, z: F.normalize(y, dim=1),
}
OPERATORS = {**LINEARISED, **COMPUTED}


class Wired(nn.Module):
    """Each step takes two earlier values and adds one."""

    def __init__(self, program: list[Step], table: dict[str, Operator]) -> None:
        super().__init__()
        torch.manual_seed(len(program))
        self.program = [(list(table)[number % len(table)], first, second) for number, first, second in program]
        self.convs, self.deep, self.norms, self.lines = (nn.ModuleDict() for _ in range(4))
        for place, (name, *_) in enumerate(self.program):
            key = str(place)
            if name in ("conv", "excited"):
                self.convs[key] = nn.Conv2d(4, 4, 3, padding=1)
            elif name == "depthwise":
                self.deep[key] = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
            elif name == "batch norm":
                self.norms[key] = nn.BatchNorm2d(4)
            elif name == "fully connected":
                self.lines[key] = nn.Linear(16, 16)
        self.head = nn.Linear(4, 3)
        self.double().eval()
        for norm in self.norms.values():
            norm.running_var.uniform_(0.5, 2.0)
            norm.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        values = [x * 1.0]
        for place, (name, first, second) in enumerate(self.program):
            step = OPERATORS[name]
            values.append(step(self, place, values[-1 - first % len(values)], values[-1 - second % len(values)]))
        return self.head(values[-1].mean((2, 3)))


programs = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6)


def images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equal(found: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(found.detach(), truth.detach(), rtol=1e-9, atol=1e-10)


def assert_computes(model: nn.Module, x: Tensor) -> None:
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    truth = model(x.clone())
    graph = trace(model, x)
    assert_equal(Interpreter(graph, lambda name: own[name].detach(), torch.float64).run(x), truth)
    assert_equal(record(model, x, calibration="running").output, truth)


def assert_linearises(model: nn.Module, x: Tensor) -> None:
    recording = record(model, x, calibration="running", smooth="tangent")
    z = images(len(x), seed=1)
    leaf = x.clone().requires_grad_()
    rows = [torch.autograd.grad(total, leaf, retain_graph=True)[0] for total in model(leaf).sum(0).flatten()]
    derivative = torch.stack([(row * z).sum((1, 2, 3)) for row in rows], 1)  # images have nothing to do with each other
    assert_equal(replay(model, z, recording, coefficients="plain").flatten(1), derivative)


class Beside(nn.ModuleDict):
    """For each operator of a table a network in which it stands between layers."""

    def __init__(self, table: dict[str, Operator]) -> None:
        conv, leaky, *numbers = (list(OPERATORS).index(name) for name in ("conv", "leaky", *table))
        programs = [[(conv, 0, 0), (leaky, 0, 0), (number, 0, 1), (conv, 0, 0)] for number in numbers]
        super().__init__({name: Wired(p, OPERATORS) for name, p in zip(table, programs, strict=True)})

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x) for network in self.values()], 1)


def test_one_operator_between_layers() -> None:
    """Where they differ the second index tells which."""
    assert_computes(Beside(OPERATORS), images())
    assert_linearises(Beside(LINEARISED), images())


@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
@given(programs)
def test_a_graph_computes_what_its_module_computes(program: list[Step]) -> None:
    assert_computes(Wired(program, OPERATORS), images())


@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
@given(programs)
def test_a_plain_replay_is_the_derivative(program: list[Step]) -> None:
    assert_linearises(Wired(program, LINEARISED), images())


PASSED_BY_ALL = (
    "conv",
    "depthwise",
    "fully connected",
    "batch norm",
    "relu in place",
    "leaky",
    "bounded",
    "gelu",
    "silu",
    "max pool",
    "mean pool",
    "rolled alone",
    "layer norm",
    "group norm",
)
OPERATORS["rolled alone"] = lambda net, place, y, z: y.roll(1, 2).flip(3)
WEIGHTED = {"conv": "convs", "depthwise": "deep", "fully connected": "lines"}
chains = st.lists(st.sampled_from(PASSED_BY_ALL), min_size=2, max_size=7)


def chain(names: list[str]) -> Wired:
    return Wired([(list(OPERATORS).index(name), 0, 0) for name in names], OPERATORS)


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")  # of smooth units, and of a tiny budget
@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
@given(chains)
def test_every_layer_of_a_chain_has_the_same_sum(names: list[str]) -> None:
    model = chain(names)
    scores = pathex.score(model, "px", data=images())
    used = [f"{WEIGHTED[name]}.{place}.weight" for place, name in enumerate(names) if name in WEIGHTED]
    total = scores["head.weight"].sum()
    for name in used:
        torch.testing.assert_close(scores[name].sum(), total, rtol=1e-9, atol=0.0)


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")  # of smooth units, and of a tiny budget
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
@given(programs)
def test_scores_depend_neither_on_the_order_of_images_nor_on_memory(program: list[Step]) -> None:
    model, x = Wired(program, LINEARISED), images(6)
    whole = pathex.score(model, "px", data=x)
    parts = [x[[4, 0]], x[[5, 3]], x[[1, 2]]]
    for other in (pathex.score(model, "px", data=parts), pathex.score(model, "px", data=x, memory="20KiB")):
        for name, score in whole.items():
            torch.testing.assert_close(other[name], score, rtol=1e-8, atol=1e-14)
