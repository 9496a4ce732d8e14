"""LayerNorm, GroupNorm, InstanceNorm, RMSNorm and the like: recorded scale times weight, no centring, no shift."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm import layers
from torch import nn
from torchvision.models.convnext import LayerNorm2d

import pathex
from brute_force.cases import Wired
from brute_force.norms import group_scale, instance_scale, layer_scale, response_scale, scores_of_two_layers
from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.paths import record, replay, replay_open
from paths.oracle import Beside, Between, assert_equal, images
from snapshots import unchanged

pytestmark = pytest.mark.filterwarnings("ignore:.* is derived for piecewise-linear")

SHAPE = (3, 4, 2, 3)
EPS = 1e-3
GAMMA = images(4, seed=11)
BETA = images(4, seed=12)
LAST = images(2, 3, seed=13)


def _channels_last(norm):
    return lambda x: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


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
            lambda x: torch.layer_norm(x, [2, 3], LAST, None, EPS, False),
            lambda x: F.layer_norm(x.to(memory_format=torch.channels_last), (2, 3), LAST, None, EPS),
            lambda x: F.layer_norm(x, (2, 3), eps=EPS) * LAST + 1,
        ],
    ),
    "layer norm over channels": (
        GAMMA.view(4, 1, 1),
        lambda x: layer_scale(x.transpose(0, 2, 3, 1), 1, EPS).transpose(0, 3, 1, 2),
        [
            _channels_last(_with(nn.LayerNorm(4, eps=EPS))),
            _with(LayerNorm2d(4, eps=EPS)),
            _with(layers.LayerNorm2d(4, eps=EPS)),
            lambda x: layers.fast_norm.fast_layer_norm(x.movedim(1, -1), [4], GAMMA, BETA, EPS).movedim(-1, 1),
        ],
    ),
    "rms norm": (
        LAST,
        lambda x: layer_scale(x, 2, EPS, centred=False),
        [
            _with(nn.RMSNorm([2, 3], eps=EPS), LAST),
            lambda x: torch.rms_norm(x, (2, 3), LAST, EPS),
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
            _with(layers.GroupNorm(4, 2, eps=EPS)),
            lambda x: torch.group_norm(x, 2, weight=GAMMA, bias=BETA, eps=EPS, cudnn_enabled=False),
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
            lambda x: torch.instance_norm(x, GAMMA, BETA, None, None, True, 0.1, EPS, True),
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
            lambda x: F.local_response_norm(x, 3, 0.5, k=2.0),
            lambda x: F.local_response_norm(x.flatten(2), size=3, alpha=0.5, beta=0.75, k=2.0).view_as(x),
        ],
    ),
}


def _beside(name):
    return Beside({str(number): form for number, form in enumerate(CASES[name][2])})


def _factor(name, x):
    """What a path is multiplied with."""
    weight, twin, _ = CASES[name]
    return torch.from_numpy(np.ascontiguousarray(twin(x.numpy()))) * weight


@pytest.mark.parametrize("name", CASES)
def test_every_form_is_scale_times_weight_and_counts_one_in_the_network_of_ones(name):
    forms = CASES[name][2]
    x, z = images(*SHAPE, scale=2.0), images(*SHAPE, seed=7)
    unchanged, model = x.clone(), _beside(name)
    recording = record(model, x)
    factor = _factor(name, x)
    expected = {"plain": factor * z, "squared": factor.square() * z, "absolute": factor.abs() * z}
    for how, truth in expected.items():
        replayed = replay(model, z, recording, coefficients=how)
        for number, found in enumerate(model.results(replayed, [z] * len(forms))):
            assert_equal(found, truth, f"{how} {number}")
    ones = model.results(replay(model, z, recording, coefficients="ones"), [z] * len(forms))
    assert_equal(ones[0], z)
    for form, found in zip(forms, model.results(recording.output, [z] * len(forms)), strict=True):
        assert_equal(found, form(x.clone()))
    assert torch.equal(x, unchanged)


@pytest.mark.parametrize("name", CASES)
def test_only_stored_statistics_have_an_open_reading(name):
    weight, _, forms = CASES[name]
    z, model, expected = images(*SHAPE, seed=7), _beside(name), {"squared": weight.square(), "absolute": weight.abs()}
    if "stored" in name:
        expected = {"squared": _factor(name, z).square()}
    else:
        with pytest.raises(UnsupportedOperation, match="depend on the sample"):
            replay_open(model, z, statistics=[])
    how = {} if "stored" in name else {"per_sample": "one"}
    for coefficients, factor in expected.items():
        opened = replay_open(model, z, statistics=[], coefficients=coefficients, **how)
        for found in model.results(opened, [z] * len(forms)):
            assert_equal(found, factor * z)


BY_HAND = {
    "root of the mean square": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + EPS),
    "quotient by it": lambda x: x / (x.square().mean(1, keepdim=True) + EPS).sqrt(),
    "norm": lambda x: F.normalize(x, dim=1),
    "sum of sizes": lambda x: F.normalize(x, 1, dim=1),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_scale_of_a_norm_by_hand_is_no_path_of_an_open_reading(name):
    z, model = images(*SHAPE, seed=7), Between(BY_HAND[name])
    assert_equal(replay_open(model, z, statistics=[], per_sample="one"), z)


def test_what_else_divides_is_a_path_of_an_open_reading():
    z = images(*SHAPE, seed=7)
    assert_equal(replay_open(Between(lambda x: x / (1 + x.sigmoid())), z, statistics=[], per_sample="one"), 2 * z)


def test_the_stored_statistics_of_a_module_act_in_evaluation_and_stay():
    layer = nn.InstanceNorm2d(4, affine=True, track_running_stats=True).double()
    layer(images(*SHAPE))
    model, x, z = Between(layer), images(*SHAPE, seed=3), images(*SHAPE, seed=7)
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
    model, plain = (nn.Sequential(first, Between(form)).float() for form in (half, lambda y: norm(y, (4,))))
    recording, expected = record(model, x), record(plain, x)
    assert recording.output.dtype == torch.float32
    assert_equal(replay(model, x, recording), replay(plain, x, expected))


@pytest.mark.parametrize("layer", [layers.LayerNorm2dFp32(4), layers.LayerNorm2d(4)])
def test_a_norm_that_casts_to_single_precision(layer):
    layer, x, z = _with(layer), images(*SHAPE), images(*SHAPE, seed=7)
    found = replay(Between(layer), z, record(Between(layer), x))
    scale = torch.from_numpy(layer_scale(x.permute(0, 2, 3, 1).numpy(), 1, 1e-6)).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, (scale * GAMMA.view(4, 1, 1)).square() * z, rtol=1e-6, atol=1e-7)


def test_another_norm_than_the_recorded_one_is_refused():
    x = images(3, 4)
    recording = record(Between(nn.LayerNorm(4).double()), x)
    for other in (lambda y: F.layer_norm(y[:, :2], (2,)), F.relu, lambda y: F.rms_norm(F.rms_norm(y, (4,)), (4,))):
        with pytest.raises(InvalidInput, match="recording is of another network"):
            replay(Between(other), x, recording)


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

    def act(hidden, coefficient):
        with torch.no_grad():  # the real layer, centring and shift included
            return model.norm(torch.from_numpy(hidden)).numpy()

    expected = scores_of_two_layers(x.numpy(), first, second, lambda h: scale_of(h) * gamma, act)
    found = pathex.score(model, "px", data=x, mask=pathex.Mask({f"{k}.weight": keep for k, keep in mask.items()}))
    for key, truth in zip(("first", "second"), expected, strict=True):
        score = found[f"{key}.weight"].squeeze(-1)
        torch.testing.assert_close(score, torch.from_numpy(truth), rtol=1e-10, atol=1e-12)
