"""What has no rule says so, with the module and the function; nothing is dropped in silence."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pathex
from brute_force.cases import Wired
from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.graph import trace
from pathex.paths import calibrate, connectivity, forward, record, replay, survey
from snapshots import unchanged

pytestmark = pytest.mark.filterwarnings("ignore:.* is derived for piecewise-linear")


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * 17


class _Opaque(_Square):
    """Its forward pass calls nothing that can be intercepted."""

    @staticmethod
    def forward(ctx, x):
        return _scripted(x)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # scripting is deprecated, and still used

    @torch.jit.script
    def _scripted(x):
        return torch.relu(x) * 2


def _product_into(x):
    out = torch.ones_like(x)
    out.mul_(x)
    return out


W = torch.eye(4)

WITHOUT_RULE = {
    "cumulated product": (lambda x: x.cumprod(1), "cumprod"),
    "power of itself": (lambda x: x.abs() ** x, "pow"),
    "spectral norm": (lambda x: torch.linalg.norm(x[:, None] * torch.ones(2, 1), 2, dim=(1, 2)), "norm"),
    "power by broadcast": (lambda x: x[:, None].pow(torch.tensor([[1.0], [2.0]])), "pow"),
    "clamp by broadcast": (lambda x: x[:, None].clamp(min=torch.tensor([[0.0], [0.1]])), "clamp"),
    "cubic norm": (lambda x: x.norm(3, dim=-1, keepdim=True), "norm"),
    "fill by itself": (lambda x: x.masked_fill(torch.ones(4, dtype=torch.bool), x.sum()), "masked_fill"),
    "transform": (lambda x: torch.fft.rfft(x).real, "fft_rfft"),
    "distances": (lambda x: torch.cdist(x, x), "cdist"),
    "floor": (lambda x: torch.div(x, 2, rounding_mode="floor"), "div"),
    "prod": (lambda x: x.prod(1), "prod"),
    "bits": (lambda x: x.view(torch.int32).to(torch.float32), "view"),
    "item": (lambda x: x if x.sum().item() > 0 else -x, "cannot be traced"),
    "list": (lambda x: torch.tensor(x.tolist()), "item"),
    "numpy": (lambda x: torch.from_numpy(x.detach().numpy()), "cannot be traced"),
    "out": (lambda x: torch.add(x, x, out=torch.empty_like(x)), "add"),
    "dynamic bias": (lambda x: F.linear(x, W, x), "linear"),
    "dynamic norm": (lambda x: F.batch_norm(x, None, None, x[0], training=True), "batch_norm"),
    "dynamic shift": (lambda x: F.batch_norm(x, None, None, None, x[0], True), "batch_norm"),
    "dynamic weight of units": (
        lambda x: F.layer_norm(x, (4,), x[0]),
        "layer_norm.*weight or bias depends on the input",
    ),
    "dynamic weight of groups": (lambda x: F.group_norm(x, 2, None, x[0]), "group_norm.*weight or bias depends"),
    "dynamic weight of instances": (
        lambda x: F.instance_norm(x[..., None] * torch.ones(2), weight=x[0])[..., 0],
        "instance_norm.*weight or bias depends on the input",
    ),
    "dynamic weight without mean": (lambda x: torch.rms_norm(x, (4,), x[0]), "rms_norm.*weight or bias depends"),
    "dynamic slope": (lambda x: F.prelu(x, x[0]), "prelu"),
    "dynamic bound": (lambda x: x.clamp(max=x.mean()), "clamp"),
}


READ_AS_THEY_ARE = {
    "power of a constant": lambda x: torch.pow(2.0, x),
    "product into a constant": _product_into,
    "integers": lambda x: x.to(torch.int64).to(x.dtype),
    "copy": lambda x: torch.zeros_like(x).copy_(x),
    "zero": lambda x: x.zero_(),
    "indices that nobody uses": lambda x: torch.adaptive_max_pool1d(x[:, None], 4)[0][:, 0],
    "autograd function": _Square.apply,
    "opaque autograd function": _Opaque.apply,
    "scripted function": _scripted,
    "raw operator": torch.ops.aten.relu,
    "without gradient": torch.no_grad()(F.relu),
    "checkpoint": lambda x: checkpoint(F.relu, x, use_reentrant=False),
}


def _net(form):
    """The form stands beside a branch that goes on, so that dropping it would not be noticed at the output."""

    def forward(net, x):
        x = net.first(x)
        beside = net.body["site"](x.clone())
        return net.last(x + beside.reshape(len(x), -1)[:, :1])

    body = nn.ModuleDict({"site": Wired(lambda site, x: form(x))})
    return Wired(forward, first=nn.Linear(4, 4), body=body, last=nn.Linear(4, 2))


@pytest.mark.parametrize("case", WITHOUT_RULE)
def test_what_has_no_rule_is_refused(case):
    form, function = WITHOUT_RULE[case]
    net, x = _net(form), torch.randn(4, 4)
    for read in (lambda: replay(net, x, record(net, x)), lambda: pathex.score(net, "px", data=x)):
        with unchanged(net), pytest.raises(UnsupportedOperation, match=function) as error:
            read()
        assert "module 'body.site' (Wired)" in str(error.value)
        assert "\n" not in str(error.value)


def test_what_the_exporter_sees_through_is_read():
    def beside(net, x):
        x = net.first(x)
        return torch.cat([form(x.clone()).reshape(len(x), -1) for form in READ_AS_THEY_ARE.values()], 1)

    net, x = Wired(beside, first=nn.Linear(4, 4)), torch.randn(4, 4)
    recording = record(net, x)
    torch.testing.assert_close(recording.output, net(x).detach())
    assert replay(net, x.square(), recording).isfinite().all()


@pytest.mark.parametrize("read", [calibrate, forward, lambda net, x: survey(trace(net, x))])
def test_what_needs_no_paths_refuses_nothing(read):
    net, x = _net(lambda x: x.cumprod(1)), torch.randn(4, 4)
    read(net, x)
    with pytest.raises(UnsupportedOperation, match=r"cumprod in module 'body.site'"):
        connectivity(net, {}, x)


def test_a_forward_pass_that_writes_into_a_parameter_is_read_and_leaves_it():
    net, x = _net(F.relu), torch.randn(4, 4)
    net.first.register_forward_pre_hook(lambda layer, _: (layer.weight.data.clamp_(-0.1, 0.1), None)[1])
    with unchanged(net):
        recording = record(net, x)
    torch.testing.assert_close(recording.output, net(x).detach())


def test_an_output_that_no_path_reaches_is_refused():
    net = nn.Sequential(nn.Linear(4, 4))
    net.forward = lambda x: torch.ones(len(x), 2)
    with pytest.raises(UnsupportedOperation, match="no path"):
        record(net, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"calibration": "train"}, InvalidInput, "batch, running"),
        ({"calibration": []}, UnsupportedOperation, "batch_norm"),
        ({"smooth": "chord"}, InvalidInput, "secant, tangent, mixed"),
    ],
)
def test_options_of_a_recording_must_be_known(options, error, message):
    with pytest.raises(error, match=message):
        record(nn.BatchNorm1d(4), torch.randn(3, 4), **options)
