"""Calibration: what BatchNorm in train mode would use on all images together, and nothing of the network changed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathex
from brute_force.cases import Branches, Wired
from pathex.paths import calibrate, record, replay
from pathex.paths.moments import moments_of
from paths.oracle import assert_equal, calibrated, draws, images
from snapshots import unchanged

NETWORKS = {
    "1d": ([nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Conv1d(3, 2, 1)], (2, 6)),
    "vectors": ([nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)], (4,)),
    "2d": (
        [
            *(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, eps=0.1), nn.ReLU(inplace=True)),
            Branches(nn.Identity(), nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, affine=False))),
            *(nn.ReLU(), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, momentum=None)),
        ],
        (2, 5, 5),
    ),
    "3d": ([nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.ReLU(), nn.Conv3d(2, 1, 1)], (1, 3, 3, 3)),
    "synchronised": ([nn.Conv2d(2, 3, 1), nn.SyncBatchNorm(3), nn.ReLU()], (2, 3, 3)),
    "without statistics": ([nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()], (2, 3, 3)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def _build(name):
    layers, shape = NETWORKS[name]
    return draws(copy.deepcopy(nn.Sequential(*layers))), images(5, *shape, seed=1)


@every_network
def test_record_is_the_train_mode_forward_pass_and_stored_statistics_play_no_part(name):
    model, x = _build(name)
    twin = copy.deepcopy(model).train()
    if name == "synchronised":  # wants a GPU in train mode
        twin[1] = nn.BatchNorm2d(3).double()
        twin[1].load_state_dict(model[1].state_dict())
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.fill_(17.0)
    with unchanged(model):
        assert_equal(record(model, x).output, twin(x))
        calibrate(model, x, chunk=2)


@every_network
def test_neither_chunks_nor_micro_batches_matter(name):
    model, x = _build(name)
    whole = calibrate(model, x)
    assert whole
    for chunk in (1, 2, 3, 100):
        for one, other in zip(whole, calibrate(model, x, chunk=chunk), strict=True):
            assert_equal(other.mean, one.mean)
            assert_equal(other.var, one.var)
            assert one.mean.dtype == torch.float64
    parts = torch.cat([record(model, part, calibration=whole).output for part in x.split(2)])
    assert_equal(parts, record(model, x).output)


@every_network
def test_running_is_evaluation_mode(name):
    model, x = _build(name)
    stored = calibrated(model, images(7, *x.shape[1:], seed=2))
    recording = record(stored.train(), x, calibration="running")
    assert_equal(recording.output, stored.eval()(x))


@pytest.mark.parametrize(
    ("shape", "offset", "chunk", "layout", "rounding"),
    [
        ((64, 2, 8, 8), 1e4, 7, torch.contiguous_format, 1e-10),
        ((100, 16, 32, 32), 2, None, torch.contiguous_format, 1e-8),
        ((100, 16, 32, 32), 2, None, torch.channels_last, 1e-8),
    ],
    ids=["far from zero", "many values", "many values in channels last"],
)
def test_moments_are_exact_to_the_precision_of_the_images(shape, offset, chunk, layout, rounding):
    x = (offset + images(*shape)).float().contiguous(memory_format=layout)
    (moments,) = calibrate(nn.BatchNorm2d(shape[1]), x, chunk=chunk)
    assert moments.var.dtype == torch.float64
    torch.testing.assert_close(moments.mean, x.double().mean((0, 2, 3)), rtol=rounding, atol=0.0)
    torch.testing.assert_close(moments.var, x.double().var((0, 2, 3), unbiased=False), rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 5), (7, 3, 5, 4), (7, 3, 2, 3, 2), (1, 3, 4, 4)], ids=str)
def test_moments_are_those_of_all_values_of_a_channel(shape, chunk, dtype, monkeypatch):
    monkeypatch.setattr("pathex.paths.moments._CHUNK", chunk)
    scale, shift = (torch.tensor(v, dtype=dtype).view(3, *[1] * (len(shape) - 2)) for v in ([1, 1e-3, 1e3], [0, -5, 9]))
    x = (images(*shape).to(dtype) * scale + shift).clone()
    layouts = [x, x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
    values = x.double().transpose(0, 1).flatten(1)
    for each in layouts:
        mean, spread, count = moments_of(each)
        assert torch.equal(each, x)
        assert mean.dtype == spread.dtype == torch.float64
        assert count == values.shape[1]
        rounding = 1e-6 if dtype == torch.float32 else 1e-12
        expected = (values - values.mean(1, keepdim=True)).square().sum(1)
        torch.testing.assert_close(spread, expected, rtol=rounding, atol=0.0)
        allowed = rounding * (expected / count).sqrt() + 1e-15 * values.abs().amax(1)
        assert ((mean - values.mean(1)).abs() <= allowed).all()


def test_a_variance_over_one_value_falls_back_to_the_stored_one():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    model[1].running_var.copy_(torch.tensor([0.5, 2.0, 9.0]))
    one = images(1, 4)
    assert calibrate(model, one)[0].var.tolist() == [0.5, 2.0, 9.0]
    without = nn.BatchNorm1d(4, track_running_stats=False).double()
    assert calibrate(without, one)[0].var.tolist() == [1.0] * 4
    assert record(model, one).output.isfinite().all()


def test_a_norm_of_a_weight_is_not_calibrated():
    def effective(net):
        return F.batch_norm(net.weight[None], None, None, training=True)[0]

    layers = {"weight": nn.Parameter(images(3, 2)), "norm": nn.BatchNorm1d(3)}
    model, x = Wired(lambda net, x: net.norm(F.linear(x, effective(net))), **layers).double(), images(6, 2)
    recording = record(model, x)
    assert len(recording.statistics) == 1
    scale = (recording.statistics[0].var + 1e-5).reciprocal()
    assert_equal(replay(model, x, recording), F.linear(x, effective(model).square()) * scale)


@pytest.mark.parametrize("coefficients", ["plain", "squared", "absolute", "ones"])
def test_the_coefficient_of_a_norm(coefficients):
    model, x = draws(nn.BatchNorm1d(3)), images(5, 3)
    scale = model.weight / (x.var(0, unbiased=False) + model.eps).sqrt()
    expected = {"plain": scale, "squared": scale.square(), "absolute": scale.abs(), "ones": torch.ones(3)}
    recording = record(model, x)
    assert_equal(replay(model, x, recording, coefficients=coefficients), x * expected[coefficients])


@pytest.mark.filterwarnings("ignore:px is derived", "ignore:.* of memory, more than")
def test_a_norm_of_a_constant_is_not_calibrated():
    def form(net, x):
        return net.head(net.of_x(net.first(x)).relu() * net.of_q(net.q).sum(0))

    layers = {"of_q": nn.BatchNorm1d(4), "of_x": nn.BatchNorm1d(4), "first": nn.Linear(5, 4), "head": nn.Linear(4, 2)}
    model, x = draws(Wired(form, q=nn.Parameter(torch.randn(3, 4)), **layers)), images(6, 5)
    whole, single = pathex.score(model, "px", x), pathex.score(model, "px", x, memory=1)
    for name, score in whole.items():
        torch.testing.assert_close(single[name], score, rtol=1e-12, atol=0)
