"""A traced network computes what its module computes, for any number of images, and the module stays as it is.

Of random networks in float64 the plain replay is the derivative, and scores are conserved.
"""

import copy
import itertools
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pathex
from brute_force.cases import Beside, Wired
from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.graph import Inputs, Interpreter, arguments, trace
from pathex.paths import record, replay
from programs import GROUPS, LINEARISED, OPERATORS, Program, assert_computes, assert_linearises, beside, images
from refusals import refused
from snapshots import unchanged


def network(form):
    """Two layers, and whatever a form does with them."""
    layers = {"conv": nn.Conv2d(3, 4, 3, padding=1), "head": nn.Linear(4, 4)}
    model = Wired(form, **layers, scale=torch.tensor([1.0, -2.0, 0.5, 3.0]))
    model.register_buffer("steps", torch.zeros(1))
    return model


def run(model, graph, *inputs):
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return Interpreter(graph, lambda name: own[name].detach(), next(model.parameters()).dtype).run(*inputs)


def filled_buffer(net, x):
    out = torch.zeros(len(x), 4, device=x.device, dtype=x.dtype)
    y = net.conv(x).mean((2, 3))
    out[:, :2] = y[:, :2]
    out[:, 2:].copy_(y[:, 2:] * 3)
    return net.head(out)


def counts_its_calls(net, x):
    net.steps += 1
    return net.conv(x).mean((2, 3)) * net.scale + net.steps


def casts_and_switches(net, x):
    with torch.no_grad():
        y = net.conv(x)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        y = y * 2
    return net.head(y.mean((2, 3)))


def one_layer_twice(net, x):
    return net.head(F.relu_(net.head(net.conv(x).mean((2, 3)))))


FORMS = {
    "filled buffer": filled_buffer,
    "counts its calls": counts_its_calls,
    "casts and switches": casts_and_switches,
    "one layer twice": one_layer_twice,
    "checkpointed": lambda net, x: net.head(
        checkpoint(lambda z: F.relu(net.conv(z)), x, use_reentrant=False).mean((2, 3))
    ),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_graph_computes_what_the_module_computes(form):
    model = network(form).double().eval()
    model.scale = model.scale.double()
    for count in (1, 3, 7):
        x = torch.randn(count, 3, 5, 5, dtype=torch.float64)
        with unchanged(model):
            found = run(model, trace(model, x), x)
        with torch.no_grad():
            truth = copy.deepcopy(model)(x)
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-13)


# With two tensors of four by four, and views of them that are read at the end.
WRITES = [
    lambda y, z: y.add_(z),
    lambda y, z: y.mul_(0.5),
    lambda y, z: y.relu_(),
    lambda y, z: z.clamp_(-1, 1),
    lambda y, z: y[:, :2].sub_(1.0),
    lambda y, z: y[:, 1].copy_(z[:, 0]),
    lambda y, z: y.transpose(0, 1)[2].fill_(0.25),
    lambda y, z: z[:, 1:3].add_(y[:, :2]),
    lambda y, z: y.view(-1, 2, 2)[:, 0].neg_(),
    lambda y, z: y.__setitem__((slice(None), 0), 0.5),
    lambda y, z: y.__setitem__((slice(None), 3), z[:, 1] * 2),
    lambda y, z: y[::2, 1].__iadd__(z[::2, 2]),
    lambda y, z: y.chunk(2, 1)[0].mul_(y.chunk(2, 1)[1]),
    lambda y, z: z.add_(y.clone().mul_(0.0)),
    lambda y, z: z.copy_(y.t().repeat(1, 1).add_(1.0).t()),
]


def writes(steps, x):
    y, z = x * 1, x * 2
    seen = y[:, 1:], z.t(), y.flatten()
    for step in steps:
        step(y, z)
    return y + z + seen[0].sum(1, keepdim=True) + seen[1].sum(0)[:, None] + seen[2].view(-1, 4)


def assert_writes_are_traced(*programs):
    model = Beside(
        {str(number): Wired(lambda net, x: writes(net.steps, x), steps=s) for number, s in enumerate(programs)}
    )
    model.anchor = nn.Parameter(torch.ones(()).double())
    x = torch.randn(4, 4, dtype=torch.float64)
    torch.testing.assert_close(run(model, trace(model, x), x), model(x).detach(), rtol=1e-12, atol=1e-13)


def test_each_write_and_each_after_another():
    in_turn = itertools.pairwise([*WRITES, WRITES[0]])
    assert_writes_are_traced(*([step] for step in WRITES), *in_turn, WRITES, WRITES[::-1])


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from(WRITES), min_size=1, max_size=6))
def test_programs_of_writes(program):
    assert_writes_are_traced(program)


class Pair(Wired):
    def forward(self, x, other):
        z = self.b(other["y"] if isinstance(other, dict) else other)
        return {"sum": self.a(x) + z, "parts": [self.a(x), z]}


def test_several_inputs_and_outputs():
    model, x, y = (
        Pair(None, a=nn.Linear(3, 2), b=nn.Linear(4, 2)).double(),
        torch.randn(5, 3).double(),
        torch.randn(5, 4).double(),
    )
    truth = model(x, y)
    for example, inputs in (((x, y), (x, y)), ((x, {"y": y}), (x, y)), ({"x": x, "other": y}, (x, y))):
        graph = trace(model, example)
        torch.testing.assert_close(run(model, graph, *inputs), truth["sum"].detach())
    chosen = trace(model, (x, y), output="parts")
    torch.testing.assert_close(run(model, chosen, x, y), truth["parts"][0].detach())
    with pytest.raises(InvalidInput, match=r"no output 'nothing' \(known: sum, parts\)"):
        trace(model, (x, y), output="nothing")


def test_names_of_outputs_are_those_of_the_network_not_of_its_containers():
    x, one = torch.randn(3, 2), nn.Linear(2, 2)
    forms = {
        "values": lambda net, x: {"keys": net.one(x), "values": net.one(x).relu()},
        "indices": lambda net, x: _Places(net.one(x), net.one(x).relu()),
    }
    for name, form in forms.items():
        model = Wired(form, one=one)
        found = run(model, trace(model, x, output=name), x)
        torch.testing.assert_close(found, one(x).relu().detach())
        with refused("no output 'count'"):
            trace(model, x, output="count")


class _Places(NamedTuple):
    found: Tensor
    indices: Tensor


class Star(nn.Linear):
    def forward(self, x, *others, **named):
        return super().forward(sum(others, x)) * named.get("scale", 1)


def test_arguments_of_any_number():
    model, x, y = Star(4, 2).double(), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    scale = torch.randn(3, 1).double()
    for example in (x, (x, y), (x, y, x), {"x": x, "scale": scale}, Inputs((x, y), {"scale": scale})):
        args, kwargs = arguments(example)
        found = run(model, trace(model, example), *args, *kwargs.values())
        torch.testing.assert_close(found, model(*args, **kwargs).detach())


def test_several_threads_trace():
    x = torch.randn(2, 4)
    networks = [nn.Sequential(nn.Linear(4, width), nn.Sigmoid(), nn.Linear(width, 2)) for width in range(11, 19)]
    with ThreadPoolExecutor(4) as threads:
        for model, graph in zip(networks, threads.map(lambda model: trace(model, x), networks), strict=True):
            torch.testing.assert_close(run(model, graph, x), model(x).detach())


class CountsImages(nn.Linear):
    def forward(self, x):
        return sum(super(CountsImages, self).forward(row) for row in x.unbind(0)).expand(len(x), -1)


def test_a_network_that_counts_its_images_is_traced_for_each_number():
    model = CountsImages(3, 2).double()
    for count in (1, 2, 4):
        x = torch.randn(count, 3).double()
        torch.testing.assert_close(run(model, trace(model, x), x), model(x).detach())


def test_a_structure_is_traced_once_whatever_its_weights_are():
    first, second = (nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(2))
    x = torch.randn(2, 3)
    graph = trace(first, x)
    assert graph is trace(second, x) is trace(first, x[:1])
    for model in (first, second):
        torch.testing.assert_close(run(model, graph, x), model(x).detach())
    with torch.no_grad():
        first[0].weight.mul_(-1)
    assert trace(first, x) is graph
    assert graph is not trace(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), x)
    assert graph is not trace(first, torch.ones(2, 4, 3))


CHANGES = {
    "a module": lambda net: setattr(net, "conv", nn.Conv2d(3, 4, 3, padding=1, bias=False)),
    "a function": lambda net: setattr(net, "form", one_layer_twice),
    "a lambda": lambda net: setattr(net, "form", lambda own, x: own.head(own.conv(x).mean((2, 3))) * 2),
    "a number": lambda net: setattr(net.conv, "padding", (2, 2)),
    "a tensor": lambda net: setattr(net, "scale", torch.ones(4)),
    "sharing": lambda net: setattr(net.head, "bias", net.conv.bias),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_structure_is_traced_anew(change):
    model = network(lambda own, x: own.head(own.conv(x).mean((2, 3))) * own.scale)
    x = torch.randn(2, 3, 5, 5)
    before = trace(model, x)
    CHANGES[change](model)
    after = trace(model, x)
    assert after is not before
    torch.testing.assert_close(run(model, after, x), model(x).detach())


def test_no_more_graphs_are_kept_than_were_agreed(monkeypatch):
    monkeypatch.setattr(sys.modules[trace.__module__], "_CACHED", 3)
    monkeypatch.setattr(sys.modules[trace.__module__], "_known", known := {})
    model, counted = nn.Linear(3, 2), CountsImages(3, 2)
    first = trace(model, torch.ones(1, 3))
    for count in (2, 4, 5):
        trace(counted, torch.ones(count, 3))
        assert trace(model, torch.ones(1, 3)) is first
    assert len(known) == 3


def test_a_hook_may_keep_what_it_sees():
    model, x, seen = nn.Linear(3, 2).double(), torch.randn(2, 3).double(), []
    model.register_forward_hook(lambda module, args, output: seen.append(output))
    for _ in range(2):
        graph = trace(model, x)
        torch.testing.assert_close(run(model, graph, x), model(x).detach())
        torch.testing.assert_close(
            replay(model, x, record(model, x), coefficients="plain"), x @ model.weight.T.detach()
        )


REFUSED = {
    "decides by values": lambda net, x: net.conv(x) if x.sum() > 0 else net.conv(-x),
    "takes a number": lambda net, x: net.conv(x) * float(x.abs().max()),
    "leaves torch": lambda net, x: net.conv(x) + float(x.detach().numpy().sum()),
}


@pytest.mark.parametrize("form", REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_one_line_that_names_the_module(form, capfd, monkeypatch):
    handler = logging.StreamHandler(sys.__stderr__)  # as the exporter has without pytest
    monkeypatch.setattr(logging.getLogger("torch.fx.experimental.symbolic_shapes"), "handlers", [handler])
    model, x = nn.Sequential(nn.Identity(), network(form)).train(), torch.randn(2, 3, 5, 5)
    with unchanged(model), refused(r"cannot be traced in module '1' \(Wired\)", UnsupportedOperation):
        trace(model, x)
    assert not capfd.readouterr().err
    assert all(isinstance(entry, nn.Parameter) and type(entry.data) is Tensor for entry in model.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # still used
def test_wrappers_are_refused():
    with refused("DataParallel"):
        trace(nn.DataParallel(nn.Linear(2, 2)), torch.ones(1, 2))
    with refused("scripted", UnsupportedOperation):
        trace(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), torch.ones(1, 2))


places = st.integers(0, 2)
quick = settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
quietly = pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")  # of smooth units, and of a tiny budget


@pytest.mark.parametrize("names", [*GROUPS, sorted(OPERATORS.keys() - LINEARISED.keys())])
def test_one_operator_between_layers(names):
    model = beside(names)
    assert_computes(model, images())
    if names in GROUPS:
        assert_linearises(model, images())


@quietly
@quick
@given(st.lists(st.tuples(st.sampled_from(list(OPERATORS)), places, places), min_size=1, max_size=6))
def test_operators_one_after_another(steps):
    model = Program(steps)
    assert_computes(model, images())
    if {name for name, *_ in steps} <= LINEARISED.keys():
        assert_linearises(model, images())
        x = images(6)
        whole, parts = pathex.score(model, "px", data=x), [x[[4, 0]], x[[5, 3]], x[[1, 2]]]
        for other in (pathex.score(model, "px", data=parts), pathex.score(model, "px", data=x, memory="20KiB")):
            torch.testing.assert_close(other, whole, rtol=1e-8, atol=1e-14)


WEIGHTED = {"conv", "depthwise", "fully connected"}
PASSED_BY_ALL = [
    *("relu in place", "leaky", "gelu", "silu", "max pool", "mean pool", "rolled alone"),
    *("batch norm", "layer norm", "group norm", *WEIGHTED),
]


@quietly
@settings(quick, max_examples=6)
@given(st.lists(st.sampled_from(sorted(PASSED_BY_ALL)), min_size=2, max_size=7))
def test_every_layer_of_a_chain_has_the_same_sum(names):
    scores = pathex.score(Program([(name, 0, 0) for name in names]), "px", data=images())
    total = scores["head.weight"].sum()
    for place, name in enumerate(names):
        if name in WEIGHTED:
            torch.testing.assert_close(scores[f"layers.{place}.weight"].sum(), total, rtol=1e-9, atol=0.0)
