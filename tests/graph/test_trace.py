"""A traced network computes what its module computes, for any number of images, and the module stays as it is."""

import copy
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brute_force.cases import Wired
from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.graph import Interpreter, trace
from snapshots import unchanged


def network(form):
    """Two layers, and whatever a form does with them."""
    layers = {"conv": nn.Conv2d(3, 4, 3, padding=1), "head": nn.Linear(4, 4)}
    model = Wired(form, **layers, scale=torch.tensor([1.0, -2.0, 0.5, 3.0]))
    model.register_buffer("steps", torch.zeros(1))
    return model


def tensors_of(model):
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return lambda name: own[name].detach()


def run(model, graph, *inputs):
    dtype = next(model.parameters()).dtype
    return Interpreter(graph, tensors_of(model), dtype).run(*inputs)


def written_through_views(net, x):
    y = net.conv(x)
    y[:, :2].mul_(2.0)
    y[:, 0] = 0.5
    y[:, 1, ::2] += y[:, 2, ::2]
    return y.relu_().mean((2, 3))


def views_see_later_writes(net, x):
    y = net.conv(x)
    flat, part = y.flatten(2), y[:, 1:3]
    y.add_(1.0)
    part.neg_()
    return flat.sum(-1) + part.sum((2, 3)).repeat(1, 2)


def chunks_of_a_written_tensor(net, x):
    a, b = net.conv(x).chunk(2, 1)
    a.mul_(b)
    b.add_(a)
    return torch.cat([a, b], 1).mean((2, 3))


def filled_buffer(net, x):
    out = torch.zeros(len(x), 4, device=x.device, dtype=x.dtype)
    y = net.conv(x).mean((2, 3))
    out[:, :2] = y[:, :2]
    out[:, 2:].copy_(y[:, 2:] * 3)
    return net.head(out)


def copies_are_not_written(net, x):
    y = net.conv(x).mean((2, 3))
    kept, moved = y.clone(), y.t().repeat(1, 1)
    y.mul_(0.0)
    moved.add_(1.0)
    return kept + moved.t() + y


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


def activations_checkpointed(net, x):
    return net.head(checkpoint(lambda z: F.relu(net.conv(z)), x, use_reentrant=False).mean((2, 3)))


FORMS = [written_through_views, views_see_later_writes, chunks_of_a_written_tensor, filled_buffer]
FORMS += [copies_are_not_written, counts_its_calls, casts_and_switches, one_layer_twice, activations_checkpointed]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
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


STEPS = [
    lambda y, z: y.add_(z),
    lambda y, z: y.mul_(0.5),
    lambda y, z: y[:, :2].sub_(1.0),
    lambda y, z: y[:, 1].copy_(z[:, 0]),
    lambda y, z: y.transpose(0, 1)[2].fill_(0.25),
    lambda y, z: z[:, 1:3].add_(y[:, :2]),
    lambda y, z: y.view(-1, 2, 2)[:, 0].neg_(),
    lambda y, z: z.clamp_(-1, 1),
    lambda y, z: y.__setitem__((slice(None), 3), z[:, 1] * 2),
]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, len(STEPS) - 1), min_size=1, max_size=6))
def test_programs_of_writes(program):

    class Writes(nn.Linear):
        steps = tuple(program)

        def forward(self, x):
            y, z = super().forward(x), x * 2
            seen = y[:, 1:], z.t()
            for number in self.steps:
                STEPS[number](y, z)
            return y + z + seen[0].sum(1, keepdim=True) + seen[1].sum(0)[:, None]

    model = Writes(4, 4).double()
    model.program = program  # two programs are two structures
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(run(model, trace(model, x), x), model(x).detach(), rtol=1e-12, atol=1e-13)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, x, other=None, *, weight=None):
        z = self.b(other["y"] if isinstance(other, dict) else other)
        total = self.a(x) + (z if weight is None else z * weight)
        return {"sum": total, "parts": [self.a(x), z]}


def test_several_inputs_and_outputs():
    model, x, y = Pair().double(), torch.randn(5, 3).double(), torch.randn(5, 4).double()
    truth = model(x, y)
    for example, inputs in (((x, y), (x, y)), ((x, {"y": y}), (x, y)), ({"x": x, "other": y}, (x, y))):
        graph = trace(model, example)
        torch.testing.assert_close(run(model, graph, *inputs), truth["sum"].detach())
    chosen = trace(model, (x, y), output="parts")
    torch.testing.assert_close(run(model, chosen, x, y), truth["parts"][0].detach())
    with pytest.raises(InvalidInput, match=r"no output 'nothing' \(known: sum, parts\)"):
        trace(model, (x, y), output="nothing")


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
    model, x, seen = nn.Linear(3, 2), torch.randn(2, 3), []
    model.register_forward_hook(lambda module, args, output: seen.append(output))
    for _ in range(2):
        graph = trace(model, x)
        torch.testing.assert_close(run(model, graph, x), model(x).detach())


def decides_by_values(net, x):
    return net.conv(x) if x.sum() > 0 else net.conv(-x)


def leaves_torch(net, x):
    return net.conv(x) + float(x.detach().numpy().sum())


@pytest.mark.parametrize("form", [decides_by_values, leaves_torch], ids=lambda form: form.__name__)
def test_a_refusal_is_one_line_that_names_the_module(form):
    model, x = nn.Sequential(nn.Identity(), network(form)).train(), torch.randn(2, 3, 5, 5)
    message = r"cannot be traced in module '1' \(Wired\)"
    with unchanged(model), pytest.raises(UnsupportedOperation, match=message) as refusal:
        trace(model, x)
    assert "\n" not in str(refusal.value)
    assert all(isinstance(entry, nn.Parameter) and type(entry.data) is Tensor for entry in model.parameters())


def test_wrappers_are_refused():
    with pytest.raises(InvalidInput, match="DataParallel"):
        trace(nn.DataParallel(nn.Linear(2, 2)), torch.ones(1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still used
        scripted = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(UnsupportedOperation, match="scripted"):
        trace(scripted, torch.ones(1, 2))
