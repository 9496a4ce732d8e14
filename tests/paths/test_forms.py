"""One operation written in several ways is one reading; what has no rule says so, and nothing is dropped in silence."""

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
from pathex.paths import calibrate, connectivity, forward, record, replay, replay_open, survey
from paths.oracle import Beside, assert_equal, images
from refusals import refused
from snapshots import unchanged

pytestmark = pytest.mark.filterwarnings("ignore:.* is derived for piecewise-linear")

C = torch.tensor([2.0, -0.5, 1.0, 3.0], dtype=torch.float64)
WIDE = C.view(-1, 1, 1)


def _fill(x):
    out = torch.ones_like(x)
    out[:, :2] = x[:, :2]
    out[:, 2:] = x[:, 2:].relu()
    return out


def _accumulate_views(x):
    """Written through views, and read through one that was taken before anything was written."""
    out = torch.ones(x.shape, dtype=x.dtype)
    before = out.view(out.shape)
    out[:, :2] += x[:, :2]
    out.narrow(1, 2, 2).add_(x[:, 2:].relu())
    return before


def _write_between_ones(x):
    out = torch.ones(2, 4, 4, 6, dtype=x.dtype)
    out[..., 1:5] = x
    return out


def _keep_factors(x):
    a, b = x.chunk(2, 1)
    return torch.cat([a * b, a * a * b], 1)


def _change_factors(x):
    """Written into factors: it does not reach the recording."""
    a, b = x.chunk(2, 1)
    a = a.clone()
    product = a * b
    a.mul_(a).mul_(b)
    return torch.cat([product, a], 1)


FORMS = {
    "relu": [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        lambda x: torch.clip(x, min=0, max=None),
        lambda x: F.threshold(x, 0.0, 0.0),
        lambda x: F.leaky_relu(input=x, negative_slope=0.0),
        lambda x: x.clamp_(0),
        lambda x: -(-x).clamp_max(0),
    ],
    "relu6": [nn.ReLU6(), nn.Hardtanh(0, 6, inplace=True), lambda x: x.clamp(min=0, max=6)],
    "leaky": [
        nn.LeakyReLU(0.2, inplace=True),
        lambda x: F.prelu(x, torch.full((4,), 0.2, dtype=x.dtype)),
        lambda x: torch.prelu(x, torch.full((1,), 0.2, dtype=x.dtype)),
        lambda x: F.rrelu(x, 0.2, 0.2),
    ],
    "average pool": [
        nn.AvgPool2d(2),
        lambda x: F.avg_pool2d(input=x, kernel_size=2, divisor_override=4),
        lambda x: F.adaptive_avg_pool2d(x, output_size=(2, 2)),
    ],
    "global average": [
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        lambda x: x.mean(dim=[-2, -1]),
        lambda x: x.flatten(2).mean(-1, keepdim=True).squeeze(-1),
        lambda x: F.avg_pool2d(x, 4).view(len(x), -1),
        lambda x: x.sum((2, 3)) / 16,
        lambda x: x.sum((2, 3)) * (1 / 16),
    ],
    "sum": [
        lambda x: x + x.relu(),
        lambda x: x.clone().add_(x.relu()),
        lambda x: sum([x, x.relu()]),
        lambda x: torch.stack((x, x.relu()), dim=-1).sum(-1),
        lambda x: x - (-x.relu()),
        lambda x: x.new_ones(()) + x + x.relu() - 1,
    ],
    "weighted sum": [
        lambda x: x + 2 * x.relu(),
        lambda x: torch.add(x, x.relu(), alpha=2),
        lambda x: x.sub(x.relu(), alpha=-2),
        lambda x: torch.rsub(x.relu(), x, alpha=-2),
        lambda x: x + x.relu().mul_(2),
        lambda x: x + torch.div(x.relu(), 0.5),
    ],
    "scale": [
        lambda x: x * WIDE,
        lambda x: torch.multiply(WIDE.expand_as(x[0]), x),
        lambda x: x.clone().mul_(WIDE),
        lambda x: x / (1 / C).view(-1, 1, 1),
        lambda x: F.conv2d(x, torch.diag(C)[:, :, None, None]),
        lambda x: F.conv2d(x, C.view(4, 1, 1, 1), groups=4),
        lambda x: F.linear(x.movedim(1, -1), torch.diag(C), torch.ones(4, dtype=x.dtype)).movedim(-1, 1),
    ],
    "negative": [
        lambda x: -x,
        lambda x: x.clone().neg_(),
        lambda x: x * -1,
        lambda x: 1 - x,
        lambda x: WIDE - x,
        lambda x: torch.zeros(4, 1, 1, dtype=x.dtype).sub(x),
        lambda x: torch.zeros_like(x).sub_(x),
    ],
    "constants around": [
        lambda x: F.pad(x, (1, 1), value=2.0),
        nn.ZeroPad1d(1),
        _write_between_ones,
        lambda x: torch.concat(tensors=(torch.zeros_like(x[..., :1]), x, torch.ones_like(x[..., :1])), dim=-1),
    ],
    "halves": [
        lambda x: torch.cat([x[:, :2], x[:, 2:].relu()], 1),
        lambda x: torch.hstack([x.chunk(2, dim=1)[0], x.chunk(2, dim=1)[1].clamp(min=0)]),
        _fill,
        _accumulate_views,
        lambda x: (x[:, 2:].relu_(), x)[1],
    ],
    "new sizes": [
        nn.Upsample(scale_factor=2),
        lambda x: F.interpolate(x, size=(8, 8), mode="nearest"),
        lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3),
    ],
    "batch norm": [
        lambda x: F.batch_norm(x, C, C.square(), C, C),
        lambda x: F.batch_norm(x, running_mean=C, running_var=C.square(), weight=C, bias=None, eps=1e-5),
        lambda x: F.batch_norm(x, None, None, C, None, True),
    ],
    "half": [lambda x: x / 2, lambda x: 1 - x / -2],
    "factors": [_keep_factors, _change_factors],
    "shares": [lambda x: x.softmax(-1) * 0.5, lambda x: x.softmax(-1).mul_(0.5)],
    "nothing": [
        nn.Identity(),
        lambda x: F.dropout(x, 0.5, training=True),  # never switched off
        nn.Dropout2d(0.5, inplace=True),
        lambda x: F.alpha_dropout(x, p=0.5, training=False),
        lambda x: x + C.view(1, 4, 1, 1).expand_as(x),
        lambda x: x.contiguous().view(x.size()).reshape(x.shape),
        lambda x: x.to(memory_format=torch.channels_last).to(x.device).to(torch.float64).to(x),
        lambda x: x.half().float().type(torch.float64),
        lambda x: x.data,
        lambda x: x + (x + WIDE).mul_(0),  # a sum with a constant is a new tensor
    ],
}
OPEN_DIFFERS = ("average pool", "sum", "weighted sum", "halves")  # open gates know neither slopes nor windows


@pytest.mark.parametrize("operation", FORMS)
def test_all_forms_read_as_the_jacobian_of_the_first(operation):
    forms, x = FORMS[operation], images(2, 4, 4, 4, scale=3.0)
    before, z = x.clone(), images(2, 4, 4, 4, seed=8)
    model = Beside({str(number): form for number, form in enumerate(forms)})
    recording = record(model, x, smooth="tangent")
    _, truth = torch.autograd.functional.jvp(lambda y: forms[0](y.clone()), x, z)
    if operation == "batch norm":  # calibrated
        truth = WIDE * z / (x.var((0, 2, 3), unbiased=False) + 1e-5).sqrt().view(-1, 1, 1)
    readings = [replay(model, z, recording, coefficients=how) for how in ("plain", "squared", "absolute")]
    readings.append(replay_open(model, z, statistics=recording.statistics, per_sample="one"))
    for number, reading in enumerate(readings[: 3 if operation in OPEN_DIFFERS else 4]):
        first, *others = model.results(reading, [truth] * len(forms))
        if number == 0:
            assert_equal(first, truth)
        for form, other in enumerate(others, 1):
            assert_equal(other, first, f"form {form}")
    assert torch.equal(x, before)


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


W = torch.eye(4)

WITHOUT_RULE = {
    "cumulated product": (lambda x: x.cumprod(1), "cumprod"),
    "power of itself": (lambda x: x.abs() ** x, "pow"),
    "spectral norm": (lambda x: torch.linalg.norm(x[:, None] * torch.ones(2, 1), 2, dim=(1, 2)), "norm"),
    "power by broadcast": (lambda x: x[:, None].pow(torch.tensor([[1.0], [2.0]])), "pow"),
    "clamp by broadcast": (lambda x: x[:, None].clamp(min=torch.tensor([[0.0], [0.1]])), "clamp"),
    "cubic norm": (lambda x: x.norm(3, dim=-1, keepdim=True), "norm"),
    "fill by itself": (lambda x: x.masked_fill(torch.ones(4, dtype=torch.bool), x.sum()), "masked_fill"),
    "chosen entries": (lambda x: x * x[x > 0].mean(), "index.*values decide its shape"),
    "places": (lambda x: x * (x > 0).nonzero().sum(), "nonzero.*values decide its shape"),
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
    "dynamic weight of units": (lambda x: F.layer_norm(x, (4,), x[0]), "layer_norm.*weight or bias depends on the"),
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
    "product into a constant": lambda x: torch.ones_like(x).mul_(x),
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
        with unchanged(net), refused(function, UnsupportedOperation) as error:
            read()
        assert "module 'body.site' (Wired)" in str(error.value)


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


CONSTANT = Wired(lambda net, x: torch.ones(len(x), 2), layer=nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("net", "options", "error", "message"),
    [
        (CONSTANT, {}, UnsupportedOperation, "no path"),
        (nn.BatchNorm1d(4), {"calibration": "train"}, InvalidInput, "batch, running"),
        (nn.BatchNorm1d(4), {"calibration": []}, UnsupportedOperation, "batch_norm"),
        (nn.BatchNorm1d(4), {"smooth": "chord"}, InvalidInput, "mixed, secant, tangent"),
    ],
)
def test_what_cannot_be_recorded(net, options, error, message):
    with pytest.raises(error, match=message):
        record(net, torch.randn(3, 4), **options)
