"""Every operation with a rule, over its arguments, against the Jacobian of the real module."""

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.paths import Linear, Weights, record, replay, replay_open, run_linear
from paths.oracle import Beside, Between, assert_each_replays, assert_equal, assert_replays, draws, images


def _sizes(rank: int, *, channels: int = 4) -> tuple[int, ...]:
    return (2, channels, *(7, 6, 5)[:rank])


# -- weights -----------------------------------------------------------------------------------------------------------

CONVOLUTIONS: list[tuple[int, dict[str, Any]]] = [
    *((rank, options) for rank in (1, 2, 3) for options in ({}, {"groups": 2, "stride": 2}, {"dilation": 2})),
    *((2, {"padding": 1, "padding_mode": mode}) for mode in ("zeros", "reflect", "replicate", "circular")),
    *((rank, {"padding": "same", "dilation": 2}) for rank in (1, 2)),
    (2, {"padding": (0, 2), "stride": (3, 1), "bias": False}),
    (1, {"padding": "same", "padding_mode": "circular"}),
]
TRANSPOSED: list[tuple[int, dict[str, Any]]] = [
    *((rank, options) for rank in (1, 2, 3) for options in ({}, {"groups": 2, "stride": 2, "output_padding": 1})),
    (2, {"padding": 1, "dilation": 2, "bias": False}),
    (2, {"padding": (1, 0), "stride": (2, 3), "output_padding": (1, 2)}),
]


def _assert_weighs(layers: dict[str, nn.Module], x: Tensor) -> None:
    """Paths through a layer: one for each weight and position, so squared weights give squared paths."""
    squared = {name: copy.deepcopy(draws(layer)) for name, layer in layers.items()}
    with torch.no_grad():
        for layer in squared.values():
            layer.weight.square_()
    assert_each_replays(layers, x, squared=squared)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions(rank: int) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    _assert_weighs({str(o): kind(4, 2, 3, **o) for r, o in CONVOLUTIONS if r == rank}, images(*_sizes(rank)))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions(rank: int) -> None:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    x = images(2, 4, *(3, 2, 2)[:rank])
    _assert_weighs({str(o): kind(4, 2, 3, **o) for r, o in TRANSPOSED if r == rank}, x)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)])
def test_linear_layers_act_on_the_last_dimension(shape: tuple[int, ...]) -> None:
    _assert_weighs({"linear": nn.Linear(4, 3)}, images(*shape))


# -- gates -------------------------------------------------------------------------------------------------------------

GATES: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky": nn.LeakyReLU(0.2),
    "prelu": nn.PReLU(init=0.3),
    "prelu-by-channel": nn.PReLU(4),
    "hardtanh": nn.Hardtanh(-0.5, 0.8),
    "rrelu": nn.RReLU(),
    "threshold": nn.Threshold(0.3, 2.0),
}


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3), (2, 4, 3, 2)], ids=str)
def test_gates(shape: tuple[int, ...]) -> None:
    assert_each_replays(GATES | {"prelu-by-channel": draws(nn.PReLU(4))}, images(*shape, scale=4.0))


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
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
def test_a_gate_is_the_slope_times_what_arrives(layout: torch.memory_format, dtype: torch.dtype) -> None:
    """Written out by the derivative of the function itself; and replays leave the recorded gates as they are."""
    model = Beside(IN_PLACE).to(dtype)
    x = images(2, 4, 3, 3, scale=4.0).to(dtype).contiguous(memory_format=layout)
    recording = record(model, x)
    arriving = images(2, 4, 3, 3, seed=5).to(dtype).contiguous(memory_format=layout).requires_grad_()
    before = arriving.detach().clone()
    z = x.detach().double().requires_grad_()
    slopes = [torch.autograd.grad(function(z.clone()).sum(), z)[0] for function in IN_PLACE.values()]
    for _ in range(2):
        joined = replay(model, arriving, recording)
        for slope, out in zip(slopes, model.results(joined, slopes), strict=True):
            torch.testing.assert_close(out, (arriving * slope**2).to(dtype))
            (back,) = torch.autograd.grad((out * out.detach()).sum(), arriving, retain_graph=True)
            torch.testing.assert_close(back, (out * slope**2).to(dtype))
            assert out.dtype == back.dtype == dtype
        assert torch.equal(arriving, before)


def test_a_gate_at_its_kink_is_closed() -> None:
    x = torch.tensor([[0.0, 6.0, 3.0]], dtype=torch.float64)
    model = Between(nn.ReLU6())
    assert replay(model, torch.ones_like(x), record(model, x)).tolist() == [[0.0, 0.0, 1.0]]


def test_an_open_gate_lets_everything_pass() -> None:
    z, model = images(2, 4), Beside(GATES)
    for found in model.results(replay_open(model, z, statistics=[]), [z] * len(GATES)):
        assert_equal(found, z)


# -- max pools ---------------------------------------------------------------------------------------------------------

MAX_POOLS: list[tuple[int, dict[str, Any]]] = [
    *((rank, {"kernel_size": 2}) for rank in (1, 2, 3)),
    *((rank, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}) for rank in (1, 2, 3)),
    (2, {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    (2, {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)}),
    (2, {"kernel_size": 2, "stride": 3, "ceil_mode": True}),
    (1, {"kernel_size": 2, "dilation": 3, "padding": 1, "stride": 1}),
    (2, {"kernel_size": 1, "stride": 2}),
]


def _window_matrix(pool: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """1 where an input lies in the window of an output: what one-hot images leave behind."""
    hots = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    return torch.stack([pool(hot).flatten() for hot in hots], 1)


def _assert_chooses(pools: dict[str, nn.Module], x: Tensor) -> None:
    """Recorded, the winner of each window; open, the whole window."""
    assert_each_replays(pools, x)
    z, model = images(*x.shape, seed=5), Beside(pools)
    opened = replay_open(model, z, statistics=[])
    for (name, pool), found in zip(
        pools.items(), model.results(opened, [pool(z) for pool in pools.values()]), strict=True
    ):
        assert_equal(found, (_window_matrix(pool, x) @ z.flatten()).view_as(found), name)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_max_pools(rank: int) -> None:
    kind, x = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1], images(*_sizes(rank, channels=2))
    pools = {str(options): kind(**options) for r, options in MAX_POOLS if r == rank}
    _assert_chooses(pools, x)
    model = Beside(pools)
    assert_equal(replay_open(model, x, statistics=[], pools="max"), model(x))


@pytest.mark.parametrize(("rank", "sizes"), [(1, [3]), (2, [1, (3, 4), (None, 2)]), (3, [(3, 1, 2), 2])], ids=str)
def test_adaptive_pools(rank: int, sizes: list[Any]) -> None:
    x = images(*_sizes(rank, channels=2))
    averages = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    assert_each_replays({str(size): averages[rank - 1](size) for size in sizes}, x)
    greatest = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
    _assert_chooses({str(size): greatest[rank - 1](size) for size in sizes}, x)


def test_pools_without_batch_dimension() -> None:
    pools = [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(3)]
    assert_each_replays({str(pool): pool for pool in pools}, images(2, 7, 6))


# -- average pools -----------------------------------------------------------------------------------------------------

AVERAGES: list[tuple[int, dict[str, Any]]] = [
    *((rank, {"kernel_size": 2}) for rank in (1, 2, 3)),
    *(
        (rank, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": ceil, "count_include_pad": count})
        for rank, ceil, count in itertools.product((1, 2, 3), (False, True), (False, True))
    ),
    (2, {"kernel_size": (2, 3), "stride": (1, 2), "divisor_override": 4}),
    (3, {"kernel_size": 2, "padding": 1, "divisor_override": 3}),
    (2, {"kernel_size": 2, "stride": 3, "ceil_mode": True, "count_include_pad": False}),
]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_average_pools(rank: int) -> None:
    kind = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1]
    pools = {str(options): kind(**options) for r, options in AVERAGES if r == rank}
    assert_each_replays(pools, images(*_sizes(rank, channels=2)))


# -- interpolation -----------------------------------------------------------------------------------------------------

INTERPOLATIONS: list[tuple[int, dict[str, Any]]] = [
    *((rank, {"size": 9, "mode": mode}) for rank in (1, 2, 3) for mode in ("nearest", "nearest-exact", "area")),
    *((rank, {"scale_factor": 1.7, "mode": mode}) for rank in (1, 2, 3) for mode in ("nearest", "area")),
    *((1, {"size": size, "mode": "linear", "align_corners": corners}) for size in (4, 11) for corners in (False, True)),
    *(
        (2, {"size": size, "mode": mode, "align_corners": corners})
        for size, mode, corners in itertools.product(((4, 9), (13, 3)), ("bilinear", "bicubic"), (False, True))
    ),
    *((2, {"size": (3, 9), "mode": mode, "antialias": True}) for mode in ("bilinear", "bicubic")),
    (3, {"size": (3, 9, 4), "mode": "trilinear"}),
    (3, {"scale_factor": (2, 1.5, 0.7), "mode": "trilinear", "align_corners": True}),
    (2, {"scale_factor": 1.7, "mode": "bilinear"}),
    (2, {"scale_factor": (1.7, 0.6), "mode": "bicubic", "recompute_scale_factor": True}),
    (2, {"scale_factor": 2, "mode": "bilinear", "align_corners": False, "antialias": True}),
]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_interpolation(rank: int) -> None:
    forms = {str(options): partial(F.interpolate, **options) for r, options in INTERPOLATIONS if r == rank}
    assert_each_replays(forms, images(*_sizes(rank, channels=1)))


# -- what moves numbers ------------------------------------------------------------------------------------------------

MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(2, -1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2).contiguous(),
    "slice": lambda x: x[:, ::2, 1:, :-1],
    "index": lambda x: x[:, [2, 0, 2]],
    "ellipsis": lambda x: x[..., 0, None],
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda x: torch.split(x, [1, 3], dim=1)[1],
    "unbind": lambda x: torch.stack(x.unbind(1), 2),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "roll": lambda x: torch.roll(x, (1, 2), (2, 3)),
    "flip": lambda x: x.flip(-1),
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "pixel-shuffle": nn.PixelShuffle(2),
    "pixel-unshuffle": lambda x: F.pixel_unshuffle(x[:, :, :, :4], 2),
    "channel-shuffle": nn.ChannelShuffle(2),
    "unfold": lambda x: F.unfold(x, 3, padding=1, stride=2),
    "fold": lambda x: F.fold(x.reshape(2, 8, 15), (4, 6), 2),
    "unfold-method": lambda x: x.unfold(2, 3, 2),
    "sum": lambda x: x.sum((2, 3)),
    "sum-keepdim": lambda x: torch.sum(x, dim=1, keepdim=True),
    "cumsum": lambda x: x.cumsum(1),
    "mean": lambda x: x.mean((2, 3)),
    "mean-keepdim": lambda x: torch.mean(x, -1, keepdim=True),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=3.0),
    "pad-crop": lambda x: F.pad(x, (-1, 1)),
    "pad-reflect": lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"),
    "pad-circular": nn.CircularPad2d(1),
    "pad-replicate": nn.ReplicationPad2d(1),
    "dropout": nn.Dropout(0.5),
    "dropout-always": lambda x: F.dropout2d(F.dropout(x, 0.5, training=False), 0.5, training=False),
    "gather": lambda x: x.gather(1, torch.zeros(2, 1, 6, 5, dtype=torch.long)),
    "index-select": lambda x: x.index_select(1, torch.tensor([3, 3])),
}


def test_moves() -> None:
    assert_each_replays(MOVES, images(2, 4, 6, 5))


def test_dropout_that_a_network_never_switches_off_is_the_identity() -> None:
    x = images(2, 4)
    model = Between(lambda y: F.dropout(y, 0.5, training=True))
    assert_equal(replay(model, x, record(model, x)), x)


# -- whole networks ----------------------------------------------------------------------------------------------------


def _mixed() -> nn.Sequential:
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


def test_a_network_of_everything_replays_as_its_jacobian() -> None:
    assert_replays(draws(_mixed()), images(3, 2, 5, 5), squares=False)


def test_the_gradient_of_a_replay_is_that_of_its_linear_map() -> None:
    """Weights times their gradient give the output again: every path passes each layer once."""
    model, x = draws(_mixed()), images(3, 2, 5, 5)
    for name in ("0.weight", "4.weight", "10.weight"):
        recording, weights = record(model, x), Weights(model, torch.float64, scored=[name])
        reading = Linear(recording.graph, weights, recording.tape, recording.statistics)
        total = run_linear(reading, [x.square()]).sum()
        assert_equal(reading.scores(total)[name].sum(), total)
