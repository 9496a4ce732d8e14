"""The same operation written as a module, a function, a method, in place: one reading."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.paths import record, replay, replay_open
from paths.oracle import Between, assert_equal, images

Form = Callable[[Tensor], Tensor]
C = torch.tensor([2.0, -0.5, 1.0, 3.0], dtype=torch.float64)


def _into(method: str, *args: object) -> Form:
    """An in-place method whose result is not used: only what it did to its tensor."""

    def statement(x: Tensor) -> Tensor:
        getattr(x, method)(*args)
        return x

    return statement


def _fill(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    out[:, :2] = a[:, :2]
    out[:, 2:] = b[:, 2:]
    return out


def _accumulate(out: Tensor, x: Tensor) -> Tensor:
    """``out[...] += `` reads a view, adds to it, and writes it back."""
    out[:, :2] += x[:, :2]
    out[:, 2:] += x[:, 2:].relu()
    return out


def _accumulate_views(out: Tensor, x: Tensor) -> Tensor:
    """Written through views, and read through one that was taken before anything was written."""
    before = out.view(out.shape)
    out[:, :2].add_(x[:, :2])
    out.narrow(1, 2, 2).add_(x[:, 2:].relu())
    return before


def _relu_a_slice(x: Tensor) -> Tensor:
    x[:, 2:].relu_()
    return x


def _edit_a_sum(x: Tensor, constant: Tensor) -> Tensor:
    """A sum with a constant is a new tensor: writing into it leaves ``x`` alone."""
    y = x + constant
    y *= 0
    return x + y


def _edit_a_negative(x: Tensor) -> Tensor:
    y = -x
    y *= 0
    return x + y


FORMS: dict[str, Sequence[Form]] = {
    "relu": [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        F.relu,
        F.relu_,
        torch.relu,
        torch.relu_,
        Tensor.relu,
        lambda x: F.relu(x, inplace=True),
        lambda x: F.relu(x, True),
        _into("relu_"),
        lambda x: x.clamp(min=0),
        lambda x: torch.clamp(x, 0),
        lambda x: torch.clip(x, min=0, max=None),
        lambda x: x.clamp_min(0),
        lambda x: F.threshold(x, 0.0, 0.0),
        lambda x: F.leaky_relu(input=x, negative_slope=0.0),
        _into("clamp_", 0),
        lambda x: -(-x).clamp_max(0),
    ],
    "relu6": [
        nn.ReLU6(),
        nn.ReLU6(inplace=True),
        F.relu6,
        lambda x: F.relu6(x, inplace=True),
        lambda x: F.hardtanh(x, 0, 6),
        nn.Hardtanh(0, 6, inplace=True),
        lambda x: torch.clamp(x, 0, 6),
        lambda x: x.clamp(min=0, max=6),
        _into("clamp_", 0, 6),
        lambda x: F.hardtanh_(x, 0.0, 6.0),
    ],
    "leaky": [
        nn.LeakyReLU(0.2),
        nn.LeakyReLU(0.2, inplace=True),
        lambda x: F.leaky_relu(x, 0.2),
        lambda x: F.leaky_relu(x, negative_slope=0.2, inplace=True),
        lambda x: F.leaky_relu_(x, 0.2),
        lambda x: F.prelu(x, torch.full((4,), 0.2, dtype=x.dtype)),
        lambda x: torch.prelu(x, torch.full((1,), 0.2, dtype=x.dtype)),
        lambda x: F.rrelu(x, 0.2, 0.2),
    ],
    "max pool": [
        nn.MaxPool2d(2),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.max_pool2d(x, kernel_size=(2, 2), stride=None),
        lambda x: torch.max_pool2d(x, [2], stride=2),
        lambda x: torch.max_pool2d(input=x, kernel_size=2),
    ],
    "average pool": [
        nn.AvgPool2d(2),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, (2, 2), stride=(2,)),
        lambda x: F.avg_pool2d(input=x, kernel_size=2, divisor_override=4),
        lambda x: F.adaptive_avg_pool2d(x, output_size=(2, 2)),
        lambda x: F.interpolate(x, (2, 2), mode="area"),
    ],
    "global average": [
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        lambda x: nn.Flatten()(nn.AdaptiveAvgPool2d((1, 1))(x)),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean(dim=[-2, -1]),
        lambda x: torch.mean(input=x, dim=(2, 3)),
        lambda x: x.mean(3).mean(2),
        lambda x: x.flatten(2).mean(-1, keepdim=True).squeeze(-1),
        lambda x: F.avg_pool2d(x, 4).view(len(x), -1),
        lambda x: x.sum((2, 3)) / 16,
        lambda x: x.sum((2, 3)) * (1 / 16),
    ],
    "sum": [
        lambda x: x + x.relu(),
        lambda x: x.relu() + x,
        lambda x: x.add(x.relu()),
        lambda x: torch.add(x, x.relu()),
        lambda x: torch.add(input=x, other=x.relu()),
        lambda x: x.clone().add_(x.relu()),
        lambda x: sum([x, x.relu()]),
        lambda x: torch.stack([x, x.relu()]).sum(0),
        lambda x: torch.stack((x, x.relu()), dim=-1).sum(-1),
        lambda x: x - (-x.relu()),
        lambda x: torch.zeros_like(x).add_(x).add_(x.relu()),
        lambda x: x.new_ones(()) + x + x.relu() - 1,
    ],
    "weighted sum": [
        lambda x: x + 2 * x.relu(),
        lambda x: torch.add(x, x.relu(), alpha=2),
        lambda x: x.add(x.relu(), alpha=2),
        lambda x: x.clone().add_(x.relu(), alpha=2),
        lambda x: x.sub(x.relu(), alpha=-2),
        lambda x: torch.sub(x, x.relu(), alpha=-2),
        lambda x: x.relu() * 2.0 + x,
        lambda x: torch.rsub(x.relu(), x, alpha=-2),
        lambda x: x + x.relu().mul_(2),
        lambda x: x + x.relu() / 0.5,
        lambda x: x + torch.div(x.relu(), 0.5),
    ],
    "scale": [
        lambda x: x * C.view(-1, 1, 1),
        lambda x: C.view(-1, 1, 1) * x,
        lambda x: torch.mul(x, C[:, None, None]),
        lambda x: x.mul(C.reshape(1, 4, 1, 1)),
        lambda x: torch.multiply(C.view(-1, 1, 1).expand_as(x[0]), x),
        lambda x: x.clone().mul_(C.view(-1, 1, 1)),
        lambda x: x / (1 / C).view(-1, 1, 1),
        lambda x: F.conv2d(x, torch.diag(C)[:, :, None, None]),
        lambda x: F.conv2d(x, C.view(4, 1, 1, 1), groups=4),
        lambda x: F.linear(x.movedim(1, -1), torch.diag(C), torch.ones(4, dtype=x.dtype)).movedim(-1, 1),
    ],
    "negative": [
        lambda x: -x,
        lambda x: x.neg(),
        torch.negative,
        lambda x: x.clone().neg_(),
        lambda x: x * -1,
        lambda x: 1 - x,
        lambda x: torch.rsub(x, 5.0),
        lambda x: C.view(-1, 1, 1) - x,
        lambda x: torch.zeros(4, 1, 1, dtype=x.dtype).sub(x),
        lambda x: torch.zeros_like(x).sub_(x),
    ],
    "constants around": [
        lambda x: F.pad(x, (1, 1), value=2.0),
        lambda x: F.pad(x, [1, 1], "constant", 0.0),
        lambda x: F.pad(input=x, pad=(1, 1)) + 3,
        nn.ZeroPad1d(1),
        nn.ConstantPad1d(1, 5.0),
        lambda x: torch.cat([x.new_ones(*x.shape[:-1], 1), x, x.new_ones(*x.shape[:-1], 1)], -1),
        lambda x: torch.concat(tensors=(torch.zeros_like(x[..., :1]), x, torch.ones_like(x[..., :1])), dim=-1),
    ],
    "halves": [
        lambda x: torch.cat([x[:, :2], x[:, 2:].relu()], 1),
        lambda x: torch.cat([x.chunk(2, dim=1)[0], x.chunk(2, dim=1)[1].clamp(min=0)], dim=1),
        lambda x: torch.hstack([x[:, :2], x[:, 2:].relu()]),
        lambda x: _fill(torch.zeros_like(x), x, x.relu()),
        lambda x: _fill(torch.ones_like(x), x, x.relu()),
        lambda x: _accumulate(torch.ones(x.shape, dtype=x.dtype), x),
        lambda x: _accumulate_views(torch.ones(x.shape, dtype=x.dtype), x),
        lambda x: _relu_a_slice(x.clone()),
    ],
    "new sizes": [
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, size=(8, 8), mode="nearest"),
        nn.Upsample(scale_factor=2),
        nn.UpsamplingNearest2d(scale_factor=2),
        lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3),
    ],
    "batch norm": [
        lambda x: F.batch_norm(x, C, C.square(), C, C),
        lambda x: F.batch_norm(x, running_mean=C, running_var=C.square(), weight=C, bias=None, eps=1e-5),
        lambda x: F.batch_norm(x, None, None, C, None, True),
    ],
    "nothing": [
        lambda x: x,
        nn.Identity(),
        nn.Dropout(0.5),
        nn.Dropout2d(0.5, inplace=True),
        lambda x: F.dropout(x, 0.9, False),
        lambda x: F.alpha_dropout(x, p=0.5, training=False),
        lambda x: x + C.view(4, 1, 1),
        lambda x: x + C.view(1, 4, 1, 1).expand_as(x),
        lambda x: C[None, :, None, None].type_as(x).expand(x.shape) + x,
        lambda x: x.contiguous().view(x.size()).reshape(x.shape),
        lambda x: x.to(x.device).to(torch.float64).to(x),
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.float().double(),
        lambda x: x.half().type(torch.float64),
        lambda x: x.detach(),
        lambda x: x.data,
        lambda x: _edit_a_sum(x, C.view(4, 1, 1)),
        _edit_a_negative,
    ],
}


def _readings(form: Form, x: Tensor) -> list[Tensor]:
    model = Between(form)
    recording = record(model, x)
    z = images(*x.shape, seed=8)
    modes = ("plain", "squared", "absolute")
    replayed = [replay(model, z, recording, coefficients=mode) for mode in modes]
    return [*replayed, replay_open(model, z, statistics=recording.statistics)]


@pytest.mark.parametrize(
    ("operation", "number"), [(name, i) for name, all_ in FORMS.items() for i in range(1, len(all_))]
)
def test_every_form_reads_alike(operation: str, number: int) -> None:
    x = images(2, 4, 4, 4, scale=3.0)
    unchanged = x.clone()
    found, expected = (_readings(FORMS[operation][i], x) for i in (number, 0))
    # Open gates know neither slopes nor windows of other names.
    count = 3 if operation in ("average pool", "sum", "weighted sum", "halves") else len(expected)
    for one, other in zip(found[:count], expected[:count], strict=True):
        assert_equal(one, other)
    assert torch.equal(x, unchanged)


@pytest.mark.parametrize("operation", FORMS)
def test_the_first_form_is_the_jacobian(operation: str) -> None:
    """So that the forms do not agree on something wrong."""
    x, form = images(2, 4, 4, 4, scale=3.0), FORMS[operation][0]
    z = images(*x.shape, seed=8)
    if operation == "batch norm":  # calibrated
        expected = C.view(-1, 1, 1) * z / (x.var((0, 2, 3), unbiased=False) + 1e-5).sqrt().view(-1, 1, 1)
    else:
        _, expected = torch.autograd.functional.jvp(lambda y: form(y.clone()), x, z)
    assert_equal(replay(Between(form), z, record(Between(form), x), coefficients="plain"), expected)


def test_constants_are_dropped_from_whole_buffers() -> None:
    """The part of a buffer that nothing from the input is written to is a constant: zero."""

    def form(x: Tensor) -> Tensor:
        out = torch.ones(2, 4, dtype=x.dtype)
        out[:, :2] = x
        return out

    x = images(2, 2)
    model = Between(form)
    assert_equal(replay(model, x, record(model, x)), torch.cat([x, torch.zeros_like(x)], 1))


def test_a_minus_counts_once_when_squared() -> None:
    x = images(2, 3)
    model = Between(lambda y: 1 - y / -2)
    assert_equal(replay(model, x, record(model, x)), x / 4)
    assert_equal(replay(model, x, record(model, x), coefficients="absolute"), x / 2)
