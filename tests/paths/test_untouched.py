"""A reading leaves the network, its input and torch as they were, and what surrounds it does not reach into it."""

import contextlib
import copy
from collections import deque
from functools import partial
from operator import attrgetter

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import Wired
from pathex.graph import copied, tf32_products, trace, untouched
from pathex.paths import calibrate, connectivity, record, replay, replay_open, survey
from snapshots import assert_same, unchanged


def network(*extra):
    """In-place from the first operation on, with something random and something normalised."""
    layers = [nn.ReLU(inplace=True), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5, inplace=True)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), *extra, nn.Flatten(), nn.Linear(36, 3))


def images(dtype=torch.float32):
    return torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)


def score(model, x):
    return pathex.score(model, "px", data=x)


def replayed(model, x):
    recording = record(model, x)
    replay_open(model, x, statistics=recording.statistics)
    return replay(model, x, recording)


READINGS = {
    "record": record,
    "replay": replayed,
    "calibrate": lambda model, x: calibrate(model, x, chunk=2),
    "survey": lambda model, x: survey(trace(model, x)),
    "connectivity": lambda model, x: connectivity(model, {"1.weight": torch.ones(4, 2, 3, 3, dtype=torch.bool)}, x),
    "score": score,
}
every_reading = pytest.mark.parametrize("name", READINGS)
works_or_raises = pytest.mark.parametrize("fails", [False, True], ids=["works", "raises"])


def fail(*given):
    raise RuntimeError("a network that fails")


@every_reading
@works_or_raises
def test_nothing_is_left_behind(name, fails):
    model = network(*([Wired(fail)] if fails else []))
    model[2].eval()
    model[1].weight.grad = torch.ones_like(model[1].weight)
    model[1].bias.requires_grad_(False)
    x = images()
    with unchanged(model), pytest.raises(RuntimeError, match="that fails") if fails else contextlib.nullcontext():
        READINGS[name](model, x)
    assert torch.equal(x, images())
    assert (vars(x), x._version, x.requires_grad) == ({}, 0, False)


@every_reading
def test_what_surrounds_a_reading_does_not_reach_into_it(name):
    model, x = network(), images()
    expected = READINGS[name](model, x)
    bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16)
    for surrounding in (torch.no_grad, torch.enable_grad, torch.inference_mode, bfloat16):
        with surrounding(), unchanged(model):
            found = READINGS[name](model, x)
        if name in ("score", "replay"):
            assert_same(found, expected)


def switches(net, x):
    """Puts another module in training mode, itself in evaluation mode, and stores, replaces and counts."""
    net.others[0].train()
    net.eval()
    net.kept, net.removed, net.new = torch.ones(3), torch.ones(3), torch.ones(3)
    net.calls += 1
    return x


@works_or_raises
def test_training_flags_and_attributes_come_back_one_by_one(fails):
    frozen = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    switch = Wired(switches, others=[frozen], kept=torch.zeros(3), removed=None, calls=0)
    model = nn.Sequential(frozen, switch, *([Wired(fail)] if fails else []), nn.Linear(3, 2)).eval()
    model[0][1].train()
    switch.train()
    kept = switch.kept
    with unchanged(model), pytest.raises(RuntimeError) if fails else contextlib.nullcontext(), untouched(model):
        assert not any(module.training for module in model.modules())
        model(torch.randn(4, 3))  # a draw that is taken back
    assert switch.kept is kept and switch.removed is None and switch.calls == 0


def keeps(net, x):
    h = net.a(x).relu()
    net.maps, net.by_name, net.tuple, net.new = [h], {"h": h}, (h,), None
    net.log.append(h)
    net.counts["calls"] += 1
    net.seen.add(1)
    net.last.append(h)
    net.inside["maps"].append(h)
    return net.b(h)


def keeper():
    held = {"maps": None, "tuple": (), "log": [], "counts": {"calls": 0}, "seen": {0}}
    held |= {"last": deque(), "inside": {"maps": []}}
    return Wired(keeps, a=nn.Linear(3, 4), b=nn.Linear(4, 2), **held)


@pytest.mark.parametrize("method", ["px", "snip", "magnitude"])
def test_what_a_forward_pass_keeps_is_let_go(method):
    model, x = keeper(), torch.randn(4, 3)
    log = model.log
    with unchanged(model):
        pathex.prune(model, method, sparsity=0.5, data=(x, torch.zeros(4, dtype=torch.long)))
    assert model.log is log
    assert (model.maps, model.tuple, log, model.counts, model.seen) == (None, (), [], {"calls": 0}, {0})
    assert (model.last, model.inside) == (deque(), {"maps": []})
    copy.deepcopy(model)


def test_a_network_that_has_run_and_kept_its_activations_is_copied(tmp_path):
    model, x = keeper(), torch.randn(4, 3)
    model(x)
    own = copied(model)
    assert torch.equal(own.maps[0], model.maps[0]) and not own.maps[0].requires_grad
    assert own.log[0] is own.maps[0] is own.by_name["h"] and model.maps[0].requires_grad
    mask = pathex.prune(model, "magnitude", sparsity=0.5, data=x).mask
    pathex.compact(model, mask, x)
    pathex.sparse.convert(model, mask, x, threads=1)
    pathex.compaction.export(model, tmp_path / "network.pt2", x)


def test_hooks_that_a_forward_pass_installs_once_are_taken_away_with_the_note_that_they_are_there():
    seen = []

    def forward(net, x):
        if not getattr(net, "installed", False):  # as transformers does to record hidden states
            net.installed = True
            net.fc.register_forward_hook(lambda *_: seen.append(1))
            net.fc.register_forward_pre_hook(lambda module, args: None)
        return net.fc(x)

    model, x = Wired(forward, fc=nn.Linear(3, 2)), torch.randn(4, 3)
    own = model.fc.register_forward_hook(lambda *_: None)
    with unchanged(model):
        pathex.prune(model, "px", sparsity=0.5, data=x, rounds=2)
        pathex.prune(model, "snip", sparsity=0.5, data=(x, torch.zeros(4, dtype=torch.long)))
    seen.clear()
    model(x), model(x)
    assert len(seen) == 2 and own.id in model.fc._forward_hooks


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("training", [False, True])
def test_flags_of_scripted_modules_come_back(training):
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))), nn.Linear(3, 2))
    model.train(training)
    model[0][1].train(not training)
    before = [module.training for module in model.modules()]
    x = torch.ones(2, 3)
    with untouched(model):
        assert not any(module.training for module in model.modules())
        assert torch.equal(model(x), model(x))
    assert [module.training for module in model.modules()] == before


PLACES = ["cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"]  # three of the GPU


def precisions():
    return [attrgetter(place)(torch.backends).fp32_precision for place in PLACES]


@pytest.fixture
def backends():
    """``torch.backends``, whose precisions come back after the test."""
    inner = (attrgetter(name)(torch.backends) for name in ("cudnn", "mkldnn", *PLACES))
    places = [torch.backends, *inner]
    before = [place.fp32_precision for place in places]
    yield torch.backends
    for place, precision in zip(places, before, strict=True):
        place.fp32_precision = precision


@pytest.mark.parametrize("place", ["", "cuda.matmul", "cudnn.conv", "mkldnn.conv"])
def test_precision_lowered_by_its_newer_names_is_put_aside_and_back(backends, place):
    lowered = attrgetter(place)(backends) if place else backends
    lowered.fp32_precision = "tf32"
    before = precisions()
    assert "tf32" in before
    model, x = network(), images()
    with untouched(model):
        assert set(precisions()) <= {"ieee", "none"}
        model(x).sum().backward()
    assert precisions() == before
    if not place:  # what followed the setting for all operations does so still
        backends.fp32_precision = "ieee"
        assert set(precisions()) == {"ieee"}


def test_products_in_tf32_where_they_are_asked_for(backends):
    backends.mkldnn.conv.fp32_precision = "tf32"
    before = precisions()
    model = nn.Linear(1, 1)
    with untouched(model), tf32_products(), untouched(model):
        assert precisions()[:3] == ["tf32"] * 3
        assert set(precisions()[3:]) <= {"ieee", "none"}
    assert precisions() == before
    with tf32_products():
        pass
    with untouched(model):
        assert set(precisions()) <= {"ieee", "none"}


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_lowered_matmul_precision_is_put_aside_and_back(backends, precision):
    torch.set_float32_matmul_precision(precision)
    model = nn.Linear(1, 1)
    with unchanged(model), untouched(model):
        assert backends.mkldnn.matmul.fp32_precision in ("ieee", "none")
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_are_read_in_float32_and_float64_ones_in_their_own(dtype):
    model, x = network().to(dtype), images(dtype)
    wide = copy.deepcopy(model).float()
    assert torch.equal(record(model, x).output, record(wide, x.float()).output)
    for read in READINGS.values():
        read(model, x)
    assert all(entry.dtype == dtype for entry in model.parameters())
    weights = {"1.weight": wide.double()[1].weight.detach()}
    for found in (record(wide, images()), record(network(), images(), tensors=weights)):
        assert found.output.dtype == torch.float64


def test_neither_own_autocast_nor_compilation_plays_a_part():
    model, x = network(), images()
    expected = score(model, x)
    mixed = copy.deepcopy(model)
    mixed.forward = torch.autocast("cpu", torch.bfloat16)(mixed.forward)
    assert_same(score(mixed, x), expected)
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    assert_same({name.removeprefix("_orig_mod."): entry for name, entry in score(compiled, x).items()}, expected)
    model.compile(backend="eager")
    assert_same(score(model, x), expected)


def test_what_a_reading_returns_has_no_graph_but_that_of_its_input():
    model, x = network().double(), images(torch.float64)
    recording = record(model, x)
    assert not vars(recording.output) and not recording.output.requires_grad
    assert not vars(replay(model, x, recording))
    assert not any(vars(entry) for entry in (*model.parameters(), *model.buffers()))
    z = x.clone().requires_grad_()
    total = replay(model, z, recording).sum()
    (by_input,) = torch.autograd.grad(total, z)
    torch.testing.assert_close((by_input * z).sum(), total)
