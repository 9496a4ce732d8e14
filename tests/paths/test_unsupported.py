"""What has no rule says so, with the module and the function; nothing is dropped in silence."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pathex
from pathex.errors import UnsupportedOperation
from pathex.paths import calibrate, connectivity, forward, record, replay, survey

pytestmark = pytest.mark.filterwarnings(
    "ignore:px.* is derived for piecewise-linear", "ignore:synflow.* is derived for piecewise-linear"
)

Form = Callable[[Tensor], Tensor]


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0] * 17


class _Opaque(torch.autograd.Function):
    """Its forward pass calls nothing that can be intercepted."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return _scripted(x)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0]


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # scripting is deprecated, and still used

    @torch.jit.script
    def _scripted(x: Tensor) -> Tensor:
        return torch.relu(x) * 2


def _into(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    torch.add(x, x, out=out)
    return out


def _product_into(x: Tensor) -> Tensor:
    out = torch.ones_like(x)
    out.mul_(x)
    return out


W = torch.eye(4)

WITHOUT_RULE: dict[str, tuple[Form, str]] = {
    "cumulated product": (lambda x: x.cumprod(1), "cumprod"),
    "power of itself": (lambda x: x.abs() ** x, "pow"),
    "spectral norm": (lambda x: torch.linalg.norm(x[:, None] * torch.ones(2, 1), 2, dim=(1, 2)), "norm"),
    "power by broadcast": (lambda x: x[:, None].pow(torch.tensor([[1.0], [2.0]])), "pow"),
    "clamp by broadcast": (lambda x: x[:, None].clamp(min=torch.tensor([[0.0], [0.1]])), "clamp"),
    "power of a constant": (lambda x: torch.pow(2.0, x), "pow"),
    "cubic norm": (lambda x: x.norm(3, dim=-1, keepdim=True), "norm"),
    "fill by itself": (lambda x: x.masked_fill(torch.ones(4, dtype=torch.bool), x.sum()), "masked_fill"),
    "transform": (lambda x: torch.fft.rfft(x).real, "fft.rfft"),
    "distances": (lambda x: torch.cdist(x, x), "cdist"),
    "product into a constant": (_product_into, "mul_"),
    "floor": (lambda x: torch.div(x, 2, rounding_mode="floor"), "div"),
    "prod": (lambda x: x.prod(1), "prod"),
    "integers": (lambda x: x.to(torch.int64).to(x.dtype), "to"),
    "bits": (lambda x: x.view(torch.int32).to(torch.float32), "view"),
    "item": (lambda x: x if x.sum().item() > 0 else -x, "item"),
    "control flow": (lambda x: x if x.sum() else -x, "bool"),
    "list": (lambda x: torch.tensor(x.tolist()), "tolist"),
    "numpy": (lambda x: torch.from_numpy(x.detach().numpy()), "numpy"),
    "array": (lambda x: torch.from_numpy(np.asarray(x.detach())), "array"),
    "copy": (lambda x: torch.zeros_like(x).copy_(x), "copy_"),
    "zero": (lambda x: x.zero_(), "zero_"),
    "out": (_into, "add"),
    "dynamic bias": (lambda x: F.linear(x, W, x), "linear"),
    "dynamic norm": (lambda x: F.batch_norm(x, None, None, x[0], training=True), "batch_norm"),
    "dynamic shift": (lambda x: F.batch_norm(x, None, None, None, x[0], True), "batch_norm"),
    "dynamic slope": (lambda x: F.prelu(x, x[0]), "prelu"),
    "dynamic bound": (lambda x: x.clamp(max=x.mean()), "clamp"),
    "hidden rule": (lambda x: torch.adaptive_max_pool1d(x[:, None], 4)[0][:, 0], "adaptive_max_pool1d"),
    "unknown form": (lambda x: torch.sum(x, dim=1, keepdim=True, out=torch.empty(0)), "sum"),
    "autograd function": (_Square.apply, "clamp"),
    "opaque autograd function": (_Opaque.apply, "_Opaque"),
    "scripted function": (_scripted, "intercepted"),
    "raw operator": (torch.ops.aten.relu, "aten.relu"),
    "without gradient": (torch.no_grad()(F.relu), "relu"),
}


class _Site(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x)


class _Net(nn.Module):
    """The form stands beside a branch that goes on, so that dropping it would not be noticed at the output."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.body = nn.ModuleDict({"site": _Site(form)})
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        beside = self.body["site"](x.clone())
        return self.last(x + beside.reshape(len(x), -1)[:, :1])


def _assert_names(error: pytest.ExceptionInfo[UnsupportedOperation], function: str, module: str = "body.site") -> None:
    message = str(error.value)
    assert function in message
    assert f"module {module!r} (_" in message or "cannot be intercepted" in message
    assert "\n" not in message


@pytest.mark.parametrize("case", WITHOUT_RULE)
def test_what_has_no_rule_is_refused(case: str) -> None:
    form, function = WITHOUT_RULE[case]
    net, x = _Net(form), torch.randn(4, 4)
    before = {name: entry.clone() for name, entry in net.state_dict().items()}
    with pytest.raises(UnsupportedOperation) as recorded:
        record(net, x)
    _assert_names(recorded, function)
    with pytest.raises(UnsupportedOperation) as scored:
        pathex.score(net, "px", data=x)
    _assert_names(scored, function)
    assert net.training and net.body["site"].training
    assert all(torch.equal(before[name], entry) for name, entry in net.state_dict().items())


def test_connectivity_refuses() -> None:
    with pytest.raises(UnsupportedOperation, match=r"cumprod in module 'body.site'"):
        connectivity(_Net(lambda x: x.cumprod(1)), {}, torch.randn(4, 4))


@pytest.mark.parametrize("read", [survey, calibrate, forward])
def test_what_needs_no_paths_refuses_nothing(read: Callable[[nn.Module, Tensor], object]) -> None:
    read(_Net(lambda x: x.cumprod(1)), torch.randn(4, 4))


def test_a_scripted_module_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.ReLU(), nn.ReLU()))
    with pytest.raises(UnsupportedOperation, match="intercepted"):
        record(_Net(scripted), torch.randn(4, 4))


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_refused(reentrant: bool) -> None:
    """A recomputed forward pass would not be read."""
    net, x = _Net(lambda y: checkpoint(F.relu, y, use_reentrant=reentrant)), torch.randn(4, 4)
    with pytest.raises(UnsupportedOperation):
        pathex.score(net, "px", data=x)


def test_a_forward_pass_that_writes_into_a_parameter_is_refused() -> None:
    net = _Net(F.relu)
    net.first.register_forward_pre_hook(lambda layer, _: layer.weight.data.clamp_(-0.1, 0.1))
    before = net.first.weight.detach().clone()
    with pytest.raises(UnsupportedOperation, match=r"clamp_ in module 'first' \(Linear\).*parameter"):
        record(net, torch.randn(4, 4))
    assert torch.equal(net.first.weight, before)


class _Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(3, 4))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.offset.data.add_(x)
        return x


def test_the_input_is_not_written_into_a_parameter() -> None:
    net = nn.Sequential(_Adds(), nn.Linear(4, 2))
    with pytest.raises(UnsupportedOperation, match=r"add_ in module '0'.*parameter"):
        record(net, torch.randn(3, 4))
    assert not net[0].offset.any()
    assert net[0].calls == 0


class _Alternates(nn.Module):
    """Takes another route on every second call."""

    def __init__(self, *routes: Form) -> None:
        super().__init__()
        self.routes, self.calls = routes, 0
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.routes[self.calls % 2](x * self.weight)


@pytest.mark.parametrize(
    "routes",
    [
        (F.relu, lambda x: F.relu(F.relu(x))),
        (lambda x: F.relu(F.relu(x)), F.relu),
        (lambda x: F.relu(x[:, :2]), F.relu),
        (lambda x: F.max_pool1d(x, 1), F.relu),
        (lambda x: F.batch_norm(x, None, None, training=True), F.relu),
    ],
)
def test_another_route_than_the_recorded_one_is_refused(routes: tuple[Form, Form]) -> None:
    net, x = _Alternates(*routes), torch.randn(3, 4)
    recording = record(net, x)
    with pytest.raises(UnsupportedOperation, match="recorded pass"):
        replay(net, x, recording)


def test_too_few_given_moments_are_refused() -> None:
    net, x = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4)), torch.randn(3, 4)
    with pytest.raises(UnsupportedOperation, match="batch_norm"):
        record(net, x, calibration=calibrate(net, x)[:1])


def test_an_output_that_no_path_reaches_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    net.forward = lambda x: torch.ones(len(x), 2)  # type: ignore[method-assign]
    with pytest.raises(UnsupportedOperation, match="no path"):
        record(net, torch.randn(3, 4))


def test_calibration_must_be_known() -> None:
    with pytest.raises(pathex.errors.InvalidInput, match="batch, running"):
        record(nn.Linear(4, 2), torch.randn(3, 4), calibration="train")  # type: ignore[arg-type]


def test_a_wrapper_for_several_devices_is_refused() -> None:
    with pytest.raises(pathex.errors.InvalidInput, match=r"\.module"):
        record(nn.DataParallel(nn.Linear(4, 2)), torch.randn(3, 4))
