"""LayerNorm, GroupNorm, InstanceNorm, RMSNorm and the like: recorded scale times weight, no centring, no shift.

BatchNorm is calibrated to what train mode would use on all images together, and nothing of the network changed.
"""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm import layers
from torch import nn

import pathex
from brute_force.cases import Branches, Wired
from brute_force.norms import group_scale, instance_scale, layer_scale, response_scale, scores_of_two_layers
from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.paths import calibrate, record, replay, replay_open
from pathex.paths.moments import moments_of
from paths.oracle import Beside, assert_equal, between, calibrated, channels_last, draws, images
from snapshots import unchanged

pytestmark = pytest.mark.filterwarnings("ignore:.* is derived for piecewise-linear")

SHAPE = (3, 4, 2, 3)
EPS = 1e-3
GAMMA = images(4, seed=11)
BETA = images(4, seed=12)
LAST = images(2, 3, seed=13)


def _with(module, weight=GAMMA, bias=BETA):
    """The module with the given weight and shift, in float64."""
    module = module.double().eval()
    with torch.no_grad():
        module.weight.copy_(weight)
        if getattr(module, "bias", None) is not None and bias is not None:
            module.bias.copy_(bias)
    return module


# Operation -> its weight in the shape that multiplies (N, C, H, W), the scale of the twin, its spellings.
CASES = {
    "layer norm": (
        LAST,
        lambda x: layer_scale(x, 2, EPS),
        [
            _with(nn.LayerNorm([2, 3], eps=EPS), LAST, LAST),
            lambda x: F.layer_norm(input=x, normalized_shape=torch.Size((2, 3)), weight=LAST, bias=None, eps=EPS),
            lambda x: F.layer_norm(x.to(memory_format=torch.channels_last), (2, 3), LAST, None, EPS),
            lambda x: F.layer_norm(x, (2, 3), eps=EPS) * LAST + 1,
        ],
    ),
    "layer norm over channels": (
        GAMMA.view(4, 1, 1),
        lambda x: layer_scale(x.transpose(0, 2, 3, 1), 1, EPS).transpose(0, 3, 1, 2),
        [
            channels_last(_with(nn.LayerNorm(4, eps=EPS))),
            _with(layers.LayerNorm2d(4, eps=EPS)),
            lambda x: layers.fast_norm.fast_layer_norm(x.movedim(1, -1), [4], GAMMA, BETA, EPS).movedim(-1, 1),
        ],
    ),
    "rms norm": (
        LAST,
        lambda x: layer_scale(x, 2, EPS, centred=False),
        [
            _with(nn.RMSNorm([2, 3], eps=EPS), LAST),
            lambda x: torch.rms_norm(x, [2, 3], weight=None, eps=EPS) * LAST,
        ],
    ),
    "rms norm without eps": (
        torch.ones(()).double(),
        lambda x: layer_scale(x, 1, np.finfo(np.float64).eps, centred=False),
        [nn.RMSNorm(3).double(), lambda x: F.rms_norm(x, (3,)), lambda x: torch.rms_norm(x, (3,), eps=None)],
    ),
    "group norm": (
        GAMMA.view(4, 1, 1),
        lambda x: group_scale(x, 2, EPS),
        [
            _with(nn.GroupNorm(2, 4, eps=EPS)),
            lambda x: F.group_norm(x.to(memory_format=torch.channels_last), 2, GAMMA, None, EPS),
            lambda x: F.group_norm(x, 2, eps=EPS) * GAMMA.view(-1, 1, 1),
            lambda x: F.group_norm(x.flatten(2), 2, GAMMA, BETA, EPS).view_as(x),
            lambda x: layers.fast_norm.fast_group_norm(x, 2, GAMMA, BETA, EPS),
        ],
    ),
    "one group": (
        GAMMA.view(4, 1, 1),
        lambda x: group_scale(x, 1, EPS),
        [_with(nn.GroupNorm(1, 4, eps=EPS)), _with(layers.GroupNorm1(4, eps=EPS))],
    ),
    "instance norm": (
        GAMMA.view(4, 1, 1),
        lambda x: instance_scale(x, EPS),
        [
            _with(nn.InstanceNorm2d(4, eps=EPS, affine=True)),
            lambda x: F.instance_norm(x, weight=GAMMA, eps=EPS),
            lambda x: F.instance_norm(x, torch.ones(4).double(), torch.ones(4).double(), GAMMA, eps=EPS),
            lambda x: F.instance_norm(x.flatten(2), weight=GAMMA, bias=BETA, eps=EPS).view_as(x),
            lambda x: F.group_norm(x, 4, GAMMA, BETA, EPS),
        ],
    ),
    "instance norm by stored statistics": (
        GAMMA.view(4, 1, 1),
        lambda x: np.broadcast_to(((BETA.square() + EPS) ** -0.5).view(4, 1, 1).numpy(), x.shape),
        [
            lambda x: F.instance_norm(x, BETA, BETA.square(), GAMMA, BETA, False, 0.1, EPS),
            lambda x: torch.instance_norm(x, GAMMA, None, BETA, BETA.square(), False, 0.1, EPS, True),
        ],
    ),
    "local response norm": (
        torch.ones(()).double(),
        lambda x: response_scale(x, 3, 0.5, 0.75, 2.0),
        [
            nn.LocalResponseNorm(3, 0.5, 0.75, 2.0),
            lambda x: F.local_response_norm(x.flatten(2), size=3, alpha=0.5, beta=0.75, k=2.0).view_as(x),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_form_is_scale_times_weight_and_only_stored_statistics_have_an_open_reading(name):
    weight, twin, forms = CASES[name]
    x, z = images(*SHAPE, scale=2.0), images(*SHAPE, seed=7)
    before, model = x.clone(), Beside({str(number): form for number, form in enumerate(forms)})
    recording = record(model, x)
    factor = torch.from_numpy(np.ascontiguousarray(twin(x.numpy()))) * weight  # what a path is multiplied with
    expected = {"plain": factor * z, "squared": factor.square() * z, "absolute": factor.abs() * z}
    for how, truth in expected.items():
        replayed = replay(model, z, recording, coefficients=how)
        for number, found in enumerate(model.results(replayed, [z] * len(forms))):
            assert_equal(found, truth, f"{how} {number}")
    ones = model.results(replay(model, z, recording, coefficients="ones"), [z] * len(forms))
    assert_equal(ones[0], z)
    for form, found in zip(forms, model.results(recording.output, [z] * len(forms)), strict=True):
        assert_equal(found, form(x.clone()))
    assert torch.equal(x, before)
    opened, how = {"squared": factor.square()}, {}
    if "stored" not in name:
        opened, how = {"squared": weight.square(), "absolute": weight.abs()}, {"per_sample": "one"}
        with pytest.raises(UnsupportedOperation, match="depend on the sample"):
            replay_open(model, z, statistics=[])
    for coefficients, truth in opened.items():
        found = replay_open(model, z, statistics=[], coefficients=coefficients, **how)
        for each in model.results(found, [z] * len(forms)):
            assert_equal(each, truth * z)


def test_the_stored_statistics_of_a_module_act_in_evaluation_and_stay():
    layer = nn.InstanceNorm2d(4, affine=True, track_running_stats=True).double()
    layer(images(*SHAPE))
    model, x, z = between(layer), images(*SHAPE, seed=3), images(*SHAPE, seed=7)
    with unchanged(model):
        recording = record(model, x)
        assert not recording.tape
        assert_equal(replay(model, z, recording), z / (layer.running_var.view(-1, 1, 1) + layer.eps))
    assert_equal(recording.output, layer.eval()(x))


@pytest.mark.parametrize("norm", [F.layer_norm, F.rms_norm])
def test_a_network_that_casts_to_half_precision_is_read_in_its_own(norm):
    def half(y):
        with torch.autocast("cpu", torch.bfloat16):
            return norm(y.to(torch.bfloat16), (4,), weight=torch.ones(4, dtype=torch.bfloat16))

    x, first = images(3, 4).float(), nn.Linear(4, 4)
    model, plain = (nn.Sequential(first, between(form)).float() for form in (half, lambda y: norm(y, (4,))))
    recording, expected = record(model, x), record(plain, x)
    assert recording.output.dtype == torch.float32
    assert_equal(replay(model, x, recording), replay(plain, x, expected))


@pytest.mark.parametrize("layer", [layers.LayerNorm2dFp32(4), layers.LayerNorm2d(4)])
def test_a_norm_that_casts_to_single_precision(layer):
    layer, x, z = _with(layer), images(*SHAPE), images(*SHAPE, seed=7)
    found = replay(between(layer), z, record(between(layer), x))
    scale = torch.from_numpy(layer_scale(x.permute(0, 2, 3, 1).numpy(), 1, 1e-6)).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, (scale * GAMMA.view(4, 1, 1)).square() * z, rtol=1e-6, atol=1e-7)


def test_another_norm_than_the_recorded_one_is_refused():
    x = images(3, 4)
    recording = record(between(nn.LayerNorm(4).double()), x)
    for other in (lambda y: F.layer_norm(y[:, :2], (2,)), F.relu, lambda y: F.rms_norm(F.rms_norm(y, (4,)), (4,))):
        with pytest.raises(InvalidInput, match="recording is of another network"):
            replay(between(other), x, recording)


def _pointwise(norm, seed):
    """Two pointwise layers on (N, C, L) with a normalisation between them."""
    layers = {"first": nn.Conv1d(3, 4, 1, bias=False), "norm": norm, "second": nn.Conv1d(4, 2, 1, bias=False)}
    model = Wired(lambda net, x: net.second(F.relu(net.norm(net.first(x)))), **layers)
    for i, entry in enumerate(model.parameters()):
        entry.data = images(*entry.shape, seed=10 * seed + i)
    return model


class _Across(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, L)."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


NETWORKS = {
    "layer": (lambda: _Across(4), lambda h: layer_scale(h.transpose(0, 2, 1), 1, 1e-5).transpose(0, 2, 1)),
    "layer over all": (lambda: nn.LayerNorm([4, 3]), lambda h: layer_scale(h, 2, 1e-5)),
    "group": (lambda: nn.GroupNorm(2, 4), lambda h: group_scale(h, 2, 1e-5)),
    "instance": (lambda: nn.InstanceNorm1d(4, affine=True), lambda h: instance_scale(h, 1e-5)),
    "rms": (lambda: nn.RMSNorm([4, 3], eps=1e-5), lambda h: layer_scale(h, 2, 1e-5, centred=False)),
    "response": (lambda: nn.LocalResponseNorm(2, 0.3), lambda h: response_scale(h, 2, 0.3, 0.75, 1.0)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_scores_are_sums_over_paths(name, seed, masked):
    build, scale_of = NETWORKS[name]
    model, x = _pointwise(build(), seed), images(3, 3, 3, seed=seed)
    mask = {key: images(*getattr(model, key).weight.shape, seed=seed + 50) > -0.5 for key in ("first", "second")}
    if not masked:
        mask = {key: torch.ones_like(keep) for key, keep in mask.items()}
    first, second = ((getattr(model, key).weight.detach() * mask[key]).squeeze(-1).numpy() for key in mask)
    weight = getattr(model.norm, "weight", torch.ones(()).double()).detach().numpy()
    gamma = weight[:, None] if weight.ndim == 1 else weight

    def act(hidden):
        return model.norm(torch.from_numpy(hidden)).detach().numpy()  # the real layer, centring and shift included

    expected = scores_of_two_layers(x.numpy(), first, second, lambda h: scale_of(h) * gamma, act)
    found = pathex.score(model, "px", data=x, mask=pathex.Mask({f"{k}.weight": keep for k, keep in mask.items()}))
    for key, truth in zip(("first", "second"), expected, strict=True):
        score = found[f"{key}.weight"].squeeze(-1)
        torch.testing.assert_close(score, torch.from_numpy(truth), rtol=1e-10, atol=1e-12)


CALIBRATED = {
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


@pytest.mark.parametrize("name", CALIBRATED)
def test_moments_are_those_of_train_mode_whatever_is_stored_and_however_images_come(name):
    layers, shape = CALIBRATED[name]
    model, x = draws(copy.deepcopy(nn.Sequential(*layers))), images(5, *shape, seed=1)
    stored = calibrated(model, images(7, *shape, seed=2))
    running = record(copy.deepcopy(stored).train(), x, calibration="running")
    assert_equal(running.output, stored(x))
    twin = copy.deepcopy(model).train()
    if name == "synchronised":  # wants a GPU in train mode
        twin[1] = nn.BatchNorm2d(3).double()
        twin[1].load_state_dict(model[1].state_dict())
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.fill_(17.0)
    with unchanged(model):
        assert_equal(record(model, x).output, twin(x))
        whole = calibrate(model, x)
        for chunk in (1, 2, 3, 100):
            for one, other in zip(whole, calibrate(model, x, chunk=chunk), strict=True):
                assert_equal(other.mean, one.mean)
                assert_equal(other.var, one.var)
    assert whole and all(one.mean.dtype == torch.float64 for one in whole)
    parts = [record(model, part, calibration=whole).output for part in x.split(2)]
    assert_equal(torch.cat(parts), record(model, x).output)


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


@pytest.mark.filterwarnings("ignore:px is derived", "ignore:.* of memory, more than")
def test_a_norm_of_a_constant_is_not_calibrated():
    def form(net, x):
        return net.head(net.of_x(net.first(x)).relu() * net.of_q(net.q).sum(0))

    layers = {"of_q": nn.BatchNorm1d(4), "of_x": nn.BatchNorm1d(4), "first": nn.Linear(5, 4), "head": nn.Linear(4, 2)}
    model, x = draws(Wired(form, q=nn.Parameter(torch.randn(3, 4)), **layers)), images(6, 5)
    whole, single = pathex.score(model, "px", x), pathex.score(model, "px", x, memory=1)
    torch.testing.assert_close(single, whole, rtol=1e-12, atol=0)
