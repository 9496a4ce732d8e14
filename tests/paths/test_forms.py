"""One operation written in several ways: one reading, whatever becomes of it in the graph."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pathex.paths import record, replay, replay_open
from paths.oracle import Beside, Between, assert_equal, images

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


def _edit_a_sum(x):
    """A sum with a constant is a new tensor: writing into it leaves ``x`` alone."""
    y = x + WIDE
    y *= 0
    return x + y


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
    "max pool": [nn.MaxPool2d(2), lambda x: torch.max_pool2d(input=x, kernel_size=2)],
    "average pool": [
        nn.AvgPool2d(2),
        lambda x: F.avg_pool2d(input=x, kernel_size=2, divisor_override=4),
        lambda x: F.adaptive_avg_pool2d(x, output_size=(2, 2)),
        lambda x: F.interpolate(x, (2, 2), mode="area"),
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
    "nothing": [
        nn.Identity(),
        nn.Dropout2d(0.5, inplace=True),
        lambda x: F.alpha_dropout(x, p=0.5, training=False),
        lambda x: x + C.view(1, 4, 1, 1).expand_as(x),
        lambda x: x.contiguous().view(x.size()).reshape(x.shape),
        lambda x: x.to(memory_format=torch.channels_last).to(x.device).to(torch.float64).to(x),
        lambda x: x.half().float().type(torch.float64),
        lambda x: x.detach(),
        lambda x: x.data,
        _edit_a_sum,
    ],
}
OPEN_DIFFERS = ("average pool", "sum", "weighted sum", "halves")  # open gates know neither slopes nor windows


@pytest.mark.parametrize("operation", FORMS)
def test_all_forms_read_as_the_jacobian_of_the_first(operation):
    forms, x = FORMS[operation], images(2, 4, 4, 4, scale=3.0)
    unchanged, z = x.clone(), images(2, 4, 4, 4, seed=8)
    model = Beside({str(number): form for number, form in enumerate(forms)})
    recording = record(model, x)
    _, truth = torch.autograd.functional.jvp(lambda y: forms[0](y.clone()), x, z)
    if operation == "batch norm":  # calibrated
        truth = WIDE * z / (x.var((0, 2, 3), unbiased=False) + 1e-5).sqrt().view(-1, 1, 1)
    readings = [replay(model, z, recording, coefficients=how) for how in ("plain", "squared", "absolute")]
    readings.append(replay_open(model, z, statistics=recording.statistics))
    for number, reading in enumerate(readings[: 3 if operation in OPEN_DIFFERS else 4]):
        first, *others = model.results(reading, [truth] * len(forms))
        if number == 0:
            assert_equal(first, truth)
        for form, other in enumerate(others, 1):
            assert_equal(other, first, f"form {form}")
    assert torch.equal(x, unchanged)


def test_constants_are_dropped_from_whole_buffers():

    def form(x):
        out = torch.ones(2, 4, dtype=x.dtype)
        out[:, :2] = x
        return out

    x = images(2, 2)
    model = Between(form)
    assert_equal(replay(model, x, record(model, x)), torch.cat([x, torch.zeros_like(x)], 1))


def test_a_minus_counts_once_when_squared():
    x = images(2, 3)
    model = Between(lambda y: 1 - y / -2)
    assert_equal(replay(model, x, record(model, x)), x / 4)
    assert_equal(replay(model, x, record(model, x), coefficients="absolute"), x / 2)
