"""Every operation with a rule, over its arguments, against the Jacobian of the real module."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pathex.paths import Linear, Weights, record, replay, replay_open, run_linear
from paths.oracle import Beside, Between, assert_each_replays, assert_equal, assert_replays, draws, images
from paths.tables import ACTIVATIONS, GATES, TABLES, WEIGHED


@pytest.mark.filterwarnings("ignore:.*mismatched:UserWarning")  # masks of two dtypes
@pytest.mark.parametrize("table", TABLES)
def test_readings_are_those_of_the_jacobian(table):
    forms, x, squares = TABLES[table]
    assert_each_replays(forms, x, squares=squares)


@pytest.mark.parametrize("table", WEIGHED)
def test_weights_are_squared_where_they_act(table):
    layers, x = WEIGHED[table]
    squared = copy.deepcopy(layers)
    with torch.no_grad():
        for layer in squared.values():
            layer.weight.square_()
    assert_each_replays(layers, x, squared=squared)


IN_PLACE = {
    "relu": F.relu,
    "relu_": torch.relu_,
    "relu6": lambda z: F.relu6(z, inplace=True),
    "clamp": lambda z: z.clamp_(-1, 1),
    "leaky, no slope": lambda z: F.leaky_relu(z, 0.0),
    "leaky": lambda z: F.leaky_relu(z, 0.2),
    "leaky, steep": lambda z: F.leaky_relu(z, 3.0, inplace=True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gate_is_the_slope_times_what_arrives(layout, dtype):
    model = Beside(IN_PLACE).to(dtype)
    x = images(2, 4, 3, 3, scale=4.0).to(dtype).contiguous(memory_format=layout)
    recording = record(model, x)
    arriving = images(2, 4, 3, 3, seed=5).to(dtype).contiguous(memory_format=layout).requires_grad_()
    before = arriving.detach().clone()
    z = x.detach().double().requires_grad_()
    slopes = [torch.autograd.grad(function(z.clone()).sum(), z)[0] for function in IN_PLACE.values()]
    for _ in range(2):  # replays leave the recorded gates as they are
        joined = replay(model, arriving, recording)
        for slope, out in zip(slopes, model.results(joined, slopes), strict=True):
            torch.testing.assert_close(out, (arriving * slope**2).to(dtype))
            (back,) = torch.autograd.grad((out * out.detach()).sum(), arriving, retain_graph=True)
            torch.testing.assert_close(back, (out * slope**2).to(dtype))
            assert out.dtype == back.dtype == dtype
        assert torch.equal(arriving, before)


def test_a_gate_at_its_kink_is_closed():
    x = torch.tensor([[0.0, 6.0, 3.0]], dtype=torch.float64)
    model = Between(nn.ReLU6())
    assert replay(model, torch.ones_like(x), record(model, x)).tolist() == [[0.0, 0.0, 1.0]]


def test_an_open_gate_lets_everything_pass():
    z, gates = images(2, 4), GATES | ACTIVATIONS
    model = Beside(gates)
    for found in model.results(replay_open(model, z, statistics=[]), [z] * len(gates)):
        assert_equal(found, z)


@pytest.mark.parametrize("table", [name for name in TABLES if "max pools" in name])
def test_an_open_max_pool_passes_its_whole_window(table):
    pools, x, _ = TABLES[table]
    z, model = images(*x.shape, seed=5), Beside(pools)
    opened = model.results(replay_open(model, z, statistics=[]), [pool(z) for pool in pools.values()])
    hots = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)  # leave 1 where they lie in the window
    for (name, pool), found in zip(pools.items(), opened, strict=True):
        windows = torch.stack([pool(hot).flatten() for hot in hots], 1)
        assert_equal(found, (windows @ z.flatten()).view_as(found), name)
    assert_equal(replay_open(model, x, statistics=[], pools="max"), model(x))


def test_dropout_that_a_network_never_switches_off_is_the_identity():
    x = images(2, 4)
    model = Between(lambda y: F.dropout(y, 0.5, training=True))
    assert_equal(replay(model, x, record(model, x)), x)


def _mixed():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(4),
        nn.ReLU6(inplace=True),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.BatchNorm2d(2, affine=False),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Upsample(scale_factor=1.5, mode="bilinear"),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.Flatten(),
        nn.Linear(12, 3),
        nn.BatchNorm1d(3),
        nn.PReLU(3),
    )


def test_a_network_of_everything_replays_as_its_jacobian():
    assert_replays(draws(_mixed()), images(3, 2, 5, 5))


def test_the_gradient_of_a_replay_is_that_of_its_linear_map():
    model, x = draws(_mixed()), images(3, 2, 5, 5)
    for name in ("0.weight", "4.weight", "10.weight"):
        recording, weights = record(model, x), Weights(model, torch.float64, scored=[name])
        reading = Linear(recording.graph, weights, recording.tape, recording.statistics)
        total = run_linear(reading, [x.square()]).sum()
        assert_equal(reading.scores(total)[name].sum(), total)
