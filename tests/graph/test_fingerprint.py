"""What a forward pass depends on tells networks apart, and nothing else does."""

import copy
import functools
import pickle
import threading
import types
from dataclasses import dataclass
from enum import Enum

import numpy as np
import pytest
import torch
from torch import nn

from brute_force.cases import Wired
from pathex.graph import trace
from pathex.graph.fingerprint import fingerprint
from pathex.paths import record


@dataclass
class Config:
    factor: float

    def times(self, x):
        return self.factor * x


class Kind(Enum):
    ONE = 1.0
    TWO = 2.0


class Own:
    """Is read by a network that it belongs to, and holds it."""

    def __init__(self, net, factor):
        self.net, self.factor = net, factor

    def __call__(self, module, args, output):
        return output * self.factor


FACTORS = [0.0]
own = types.ModuleType("own")


def by_name(net, x):
    def inner():
        return net.one(x) * FACTORS[0]

    return inner()


def outside(factor):
    FACTORS[0] = factor
    return Wired(by_name)


def of_module(factor):
    own.factor = {1.0: _once, 2.0: _twice}[factor]
    return Wired(lambda net, x: own.factor(net.one(x)))


def hooked(factor):
    net = Wired(lambda net, x: net.one(x), inner=nn.Identity())
    net.inner.register_forward_hook(Own(net, factor).__call__)
    net.one = nn.Sequential(nn.Linear(3, 3), net.inner)
    return net


def of_class(form, **entries):
    return type("Net", (Wired,), entries)(form)


def decorated(factor):
    @torch.no_grad()
    def scaled(x):
        return x * factor

    return Wired(lambda net, x: scaled(net.one(x)))


def _once(x):
    return x * 1.0


def _twice(x):
    return x * 2.0


# For a factor a network, which multiplies by it.
HELD = {
    "private": lambda n: Wired(lambda net, x: net.one(x) * net._factor, _factor=n),
    "data class": lambda n: Wired(lambda net, x: net.one(x) * net.config.factor, config=Config(n)),
    "method of an object": lambda n: Wired(lambda net, x: net.times(net.one(x)), times=Config(n).times),
    "namespace": lambda n: Wired(lambda net, x: net.one(x) * net.own.n, own=types.SimpleNamespace(n=n)),
    "enumeration": lambda n: Wired(lambda net, x: net.one(x) * net.kind.value, kind=Kind(n)),
    "array": lambda n: Wired(lambda net, x: net.one(x) * float(net.held[0]), held=np.full(1, n)),
    "deep": lambda n: Wired(lambda net, x: net.one(x) * net.deep[0][0][0][0][0][0], deep=[[[[[[n]]]]]]),
    "module in a list": lambda n: Wired(lambda net, x: net.held[0](net.one(x)), held=[nn.LeakyReLU(n)]),
    "function": lambda n: Wired(lambda net, x: net.f(net.one(x)), f={1.0: _once, 2.0: _twice}[n]),
    "partial": lambda n: Wired(lambda net, x: net.f(net.one(x)), f=functools.partial(torch.mul, n)),
    "closure": lambda n: Wired(lambda net, x: net.one(x) * n),
    "default": lambda n: Wired(lambda net, x, n=n: net.one(x) * n),
    "decorated": decorated,
    "name outside": outside,
    "name in a module": of_module,
    "hook": hooked,
    "class": lambda n: of_class(lambda net, x: net.one(x) * net.factor, factor=n),
    "method": lambda n: of_class(lambda net, x: net.f(net.one(x)), f=lambda net, x: Config(n).times(x)),
    "static method": lambda n: of_class(lambda net, x: net.f(net.one(x)), f=staticmethod({1.0: _once, 2.0: _twice}[n])),
    "property": lambda n: of_class(lambda net, x: net.one(x) * net.f, f=property(lambda net: n)),
    "cached function": lambda n: Wired(
        lambda net, x: net.f(net.one(x)), f=functools.lru_cache({1.0: _once, 2.0: _twice}[n])
    ),
    "cached property": lambda n: of_class(lambda net, x: net.one(x) * Held(n).factor),
}


class Held:
    def __init__(self, n):
        self.n = n

    @functools.cached_property
    def factor(self):
        return self.n


def made(name, factor):
    net = HELD[name](factor)
    net.one = getattr(net, "one", nn.Linear(3, 3))
    return net.double()


@pytest.mark.parametrize("name", HELD)
def test_networks_that_differ_in_what_they_hold_have_graphs_of_their_own(name):
    x, graphs = torch.randn(2, 3).double(), []
    for factor in (1.0, 2.0):
        model, again = made(name, factor), made(name, factor)
        graphs.append(trace(model, x))
        assert graphs[-1] is trace(again, x) is trace(copy.deepcopy(model), x)
        torch.testing.assert_close(record(model, x).output, model(x).detach())
    assert graphs[0] is not graphs[1]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(3, 4, batch_first=True)
        self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))
        self.handle = self.norm.register_forward_hook(lambda module, args, output: output)
        self.whole = [self]

    def forward(self, x):
        return self.norm(self.cell(x)[0])


def test_weights_modes_hooks_of_training_and_compilation_do_not_count():
    x, first, second = torch.randn(2, 5, 3), Recurrent(), Recurrent().eval()
    second.register_full_backward_hook(lambda *_: None)
    second.compile(backend="eager")
    key = fingerprint(first, [x])
    assert fingerprint(second, [x[:1]]) == fingerprint(copy.deepcopy(first), [x]) == key
    assert fingerprint(first, [x[:, 1:]]) != key
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    assert fingerprint(pickle.loads(pickle.dumps(plain)), [x]) == fingerprint(plain, [x])


def test_an_installed_class_that_somebody_changed(monkeypatch):
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3)
    before = fingerprint(model, [x])
    monkeypatch.setattr(nn.ReLU, "forward", lambda module, x: x.tanh())
    assert fingerprint(model, [x]) != before


def test_what_cannot_be_pickled_is_told_apart_by_what_object_it_is():
    x = torch.randn(2, 3)
    one, other = (Wired(lambda net, x: net.one(x), one=nn.Linear(3, 2), lock=threading.Lock()) for _ in range(2))
    assert trace(one, x) is trace(one, x) is not trace(other, x)


def test_what_cannot_be_followed_is_like_nothing_else():
    model, x = Wired(None, deep=[]), torch.randn(2, 3)
    for _ in range(10_000):
        model.deep = [model.deep]
    assert fingerprint(model, [x]) != fingerprint(model, [x])
