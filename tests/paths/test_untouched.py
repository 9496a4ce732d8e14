"""A reading leaves the network, its input and torch as they were, and what surrounds it does not reach into it."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import pathex
from pathex.graph import tf32_products, trace, untouched
from pathex.paths import calibrate, connectivity, record, replay, replay_open, survey


def _network(*extra: nn.Module) -> nn.Sequential:
    """In-place from the first operation on, with something random and something normalised."""
    layers = [nn.ReLU(inplace=True), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5, inplace=True)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), *extra, nn.Flatten(), nn.Linear(36, 3))


def _images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)


def _score(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return pathex.score(model, "px", data=x)


def _replay(model: nn.Module, x: Tensor) -> object:
    recording = record(model, x)
    replay_open(model, x, statistics=recording.statistics)
    return replay(model, x, recording)


READINGS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "record": record,
    "replay": _replay,
    "calibrate": lambda model, x: calibrate(model, x, chunk=2),
    "survey": lambda model, x: survey(trace(model, x)),
    "connectivity": lambda model, x: connectivity(model, {"1.weight": torch.ones(4, 2, 3, 3, dtype=torch.bool)}, x),
    "score": _score,
}
every_reading = pytest.mark.parametrize("name", READINGS)


def _state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model and about torch that a reading might disturb."""
    entries = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: entry.detach().clone() for name, entry in entries.items()},
        "versions": {name: (id(entry), entry._version, entry.requires_grad) for name, entry in entries.items()},
        "attributes": {name: sorted(vars(entry)) for name, entry in entries.items()},
        "grads": {name: None if entry.grad is None else entry.grad.clone() for name, entry in entries.items()},
        "training": [module.training for module in model.modules()],
        "modules": [sorted(vars(module)) for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "random": torch.get_rng_state(),
        "torch": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.backends.mkldnn.matmul.fp32_precision,
            torch.backends.mkldnn.conv.fp32_precision,
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
        ),
    }


def _assert_same(one: Any, other: Any) -> None:
    (leaves, form), (others, other_form) = tree_flatten(one), tree_flatten(other)
    assert form == other_form
    for a, b in zip(leaves, others, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


class _Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("a network that fails")


@every_reading
@pytest.mark.parametrize("fails", [False, True], ids=["works", "raises"])
def test_nothing_is_left_behind(name: str, fails: bool) -> None:
    model = _network(*([_Fails()] if fails else []))
    model[2].eval()
    model[1].weight.grad = torch.ones_like(model[1].weight)
    model[1].bias.requires_grad_(False)
    x = _images()
    images, before = x.clone(), _state(model)
    with pytest.raises(RuntimeError, match="a network that fails") if fails else contextlib.nullcontext():
        READINGS[name](model, x)
    _assert_same(before, _state(model))
    assert torch.equal(x, images)
    assert not vars(x)
    assert x._version == 0
    assert not x.requires_grad


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@every_reading
def test_what_surrounds_a_reading_does_not_reach_into_it(name: str) -> None:
    model, x = _network(), _images()
    expected = READINGS[name](model, x)
    for surrounding in SURROUNDINGS.values():
        with surrounding():
            before = _state(model)
            found = READINGS[name](model, x)
            _assert_same(before, _state(model))
        if name in ("score", "replay"):
            _assert_same(expected, found)


def test_images_made_in_inference_mode_can_be_read() -> None:
    model = _network()
    with torch.inference_mode():
        x = _images() + 0
    _assert_same(_score(model, _images()), _score(model, x))


class _SwitchesMode(nn.Module):
    """Puts another module in training mode, itself in evaluation mode, and stores and replaces tensors."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.others = [other]  # no submodule
        self.kept = torch.zeros(3)
        self.removed: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.others[0].train()
        self.eval()
        self.kept, self.removed, self.new = torch.ones(3), torch.ones(3), torch.ones(3)
        return x


@pytest.mark.parametrize("fails", [False, True], ids=["works", "raises"])
def test_training_flags_come_back_one_by_one(fails: bool) -> None:
    frozen = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    switch = _SwitchesMode(frozen)
    model = nn.Sequential(frozen, switch, *([_Fails()] if fails else []), nn.Linear(3, 2))
    model.eval()
    model[0][1].train()
    switch.train()
    before = {name: module.training for name, module in model.named_modules()}
    kept = switch.kept
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext(), untouched(model):
        assert not any(module.training for module in model.modules())
        model(torch.randn(4, 3))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert set(before.values()) == {False, True}
    assert switch.kept is kept and switch.removed is None and not hasattr(switch, "new")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("training", [False, True])
def test_flags_of_scripted_modules_come_back(training: bool) -> None:
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))), nn.Linear(3, 2))
    model.train(training)
    model[0][1].train(not training)
    before = [module.training for module in model.modules()]
    x = torch.ones(2, 3)
    with untouched(model):
        assert not any(module.training for module in model.modules())
        assert torch.equal(model(x), model(x))
    assert [module.training for module in model.modules()] == before


def _precisions() -> list[str]:
    backends: Any = torch.backends
    cuda, cpu = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn), backends.mkldnn
    return [place.fp32_precision for place in (*cuda, cpu.matmul, cpu.conv, cpu.rnn)]


@pytest.fixture
def torch_backends() -> Iterator[Any]:
    """``torch.backends``, whose precisions come back after the test."""
    backends: Any = torch.backends
    places = backends, backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn
    places += backends.mkldnn, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn
    before = [place.fp32_precision for place in places]
    yield backends
    for place, precision in zip(places, before, strict=True):
        place.fp32_precision = precision


@pytest.mark.parametrize("place", ["", "cuda.matmul", "cudnn.conv", "mkldnn.conv"])
def test_precision_lowered_by_its_newer_names_is_put_aside_and_back(torch_backends: Any, place: str) -> None:
    lowered = attrgetter(place)(torch_backends) if place else torch_backends
    lowered.fp32_precision = "tf32"
    before = _precisions()
    assert "tf32" in before
    model, x = _network(), _images()
    with untouched(model):
        assert set(_precisions()) <= {"ieee", "none"}
        model(x).sum().backward()
    assert _precisions() == before
    if not place:  # what followed the setting for all operations does so still
        torch_backends.fp32_precision = "ieee"
        assert set(_precisions()) == {"ieee"}


def test_products_in_tf32_where_they_are_asked_for(torch_backends: Any) -> None:
    """On GPUs alone; and only there, so that what runs inside finds full precision again."""
    torch_backends.mkldnn.conv.fp32_precision = "tf32"
    before = _precisions()
    model = nn.Linear(1, 1)
    with untouched(model), tf32_products(), untouched(model):
        assert _precisions()[:3] == ["tf32"] * 3
        assert set(_precisions()[3:]) <= {"ieee", "none"}
    assert _precisions() == before
    with tf32_products():
        pass
    with untouched(model):
        assert set(_precisions()) <= {"ieee", "none"}


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_lowered_matmul_precision_is_put_aside_and_back(torch_backends: Any, precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    model = nn.Linear(1, 1)
    before = _state(model)["torch"]
    with untouched(model):
        assert torch_backends.mkldnn.matmul.fp32_precision in ("ieee", "none")
    assert _state(model)["torch"] == before
    torch.set_float32_matmul_precision("highest")


def test_randomness_inside_is_taken_back() -> None:
    model, before = nn.Linear(1, 1), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), untouched(model):
        torch.rand(3)
        assert not model.training
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_are_read_in_float32(dtype: torch.dtype) -> None:
    model, x = _network().to(dtype), _images(dtype)
    wide = copy.deepcopy(model).float()
    assert torch.equal(record(model, x).output, record(wide, x.float()).output)
    scores, expected = _score(model, x), _score(wide, x.float())
    torch.testing.assert_close(scores, expected)
    assert all(entry.dtype == dtype for entry in model.parameters())
    for read in READINGS.values():
        read(model, x)


def test_float64_networks_are_read_in_float64() -> None:
    model = _network().double()
    assert record(model, _images()).output.dtype == torch.float64
    weights = {"1.weight": model[1].weight.detach()}
    assert record(_network(), _images(), tensors=weights).output.dtype == torch.float64


def test_the_networks_own_autocast_is_off() -> None:
    """Squares and products of many factors leave half precision."""

    class Mixed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    model, x = _network(), _images()
    _assert_same(_score(model, x), _score(Mixed(*model), x))


def test_a_compiled_network_is_read_as_it_was_written() -> None:
    model, x = _network(), _images()
    expected = _score(model, x)
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    found = _score(compiled, x)
    _assert_same(expected, {name.removeprefix("_orig_mod."): score for name, score in found.items()})
    model.compile(backend="eager")
    _assert_same(expected, _score(model, x))


def test_memory_format_does_not_matter() -> None:
    model, x = _network().double(), _images(torch.float64)
    expected = _score(model, x)
    found = _score(copy.deepcopy(model).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_what_a_reading_returns_does_not_keep_its_tape_alive() -> None:
    model, x = _network(), _images()
    recording = record(model, x)
    assert not vars(recording.output)
    assert not recording.output.requires_grad
    assert not vars(replay(model, x, recording))
    assert not any(vars(entry) for entry in (*model.parameters(), *model.buffers()))


def test_the_gradient_of_a_replay_reaches_its_input() -> None:
    model, x = _network().double(), _images(torch.float64)
    recording = record(model, x)
    z = x.clone().requires_grad_()
    total = replay(model, z, recording).sum()
    (by_input,) = torch.autograd.grad(total, z)
    torch.testing.assert_close((by_input * z).sum(), total)
