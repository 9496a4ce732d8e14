"""Weights that a network computes from a parameter are scored as what they are in the forward pass."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, GroupNormAct, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.models.nfnet import NfCfg, NormFreeNet
from timm.models.resnetv2 import ResNetV2
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import pathex
from brute_force.cases import Beside, Wired
from brute_force.norms import scores_of_two_layers, standardised
from pathex.errors import UnsupportedOperation
from pathex.graph import trace
from pathex.masks import prunable_weights
from pathex.paths import Linear, Weights, connectivity, lowered, record, run_linear
from paths.oracle import assert_each_replays, assert_equal, images

pytestmark = pytest.mark.filterwarnings("ignore:.* is derived for piecewise-linear")

X = images(3, 3, 2, 2, seed=4)


class _Computed(nn.Conv2d):
    """A pointwise convolution whose weight is computed from a parameter and a gain for each filter."""

    def __init__(self, compute):
        super().__init__(3, 4, 1)
        self.gain, self.compute = nn.Parameter(torch.ones(4, 1, 1, 1)), compute

    def forward(self, x):
        return F.conv2d(x, self.compute(self.weight, self.gain), self.bias)


def _network(first, seed=1):
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    for i, entry in enumerate(model.parameters()):
        entry.data = images(*entry.shape, seed=20 * seed + i)
    return model


def _px(model, *names):
    weights = {name: model.get_parameter(name).detach().clone().requires_grad_() for name in names}
    own = Weights(model, torch.float64, replaced=weights, scored=names)
    recording = record(model, X, tensors=own)
    reading = Linear(lowered(trace(model, X)), own, recording.tape, recording.statistics)
    return reading.scores(run_linear(reading, [X.square()]).sum())


def _standardise_in_place(theta, gain):
    w = theta.clone()
    w -= w.mean(dim=(1, 2, 3), keepdim=True)
    w.div_(w.std(dim=(1, 2, 3), keepdim=True, unbiased=False).add_(1e-6))
    return w.mul_(gain)


def _standardise_by_moments(theta, gain):
    var, mean = torch.var_mean(theta, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return torch.addcmul(-mean * (gain * torch.rsqrt(var + 1e-8)), theta, gain * torch.rsqrt(var + 1e-8))


def _written_in_part(theta, gain):
    w = theta.clone()
    w[:2] -= w[:2].mean()
    return w


COMPUTED = {
    "batch norm": lambda t, g: F.batch_norm(
        t.reshape(1, 4, -1), None, None, weight=g.view(-1), training=True, eps=1e-6
    ).reshape_as(t),
    "layer norm": lambda t, g: F.layer_norm(t.flatten(1), (3,)).view_as(t) * g,
    "group norm": lambda t, g: F.group_norm(t, 1) * g,
    "in place": _standardise_in_place,
    "by moments": _standardise_by_moments,
    "unit norm": lambda t, g: g * F.normalize(t, dim=1),
    "divided by its norm": lambda t, g: t / t.norm(p=2, dim=(1, 2, 3), keepdim=True) * g,
    "centred": lambda t, g: t - t.mean((1, 2, 3), keepdim=True),
    "signs": lambda t, g: torch.sign(t) * t.abs().mean((1, 2, 3), keepdim=True),
    "bounded": lambda t, g: torch.tanh(t) * g,
    "shares": lambda t, g: t.softmax(1),
    "with a fixed part": lambda t, g: t + torch.linspace(-1, 1, 12, dtype=t.dtype).view_as(t),
    "symmetric": lambda t, g: (t + t.flip(1)) / 2,
    "masked": lambda t, g: torch.where(t.detach().abs() > 0.3, t, torch.zeros_like(t)),
    "itself": lambda t, g: t,
    "negative": lambda t, g: -(g.view(4, 1, 1, 1) * t) / 3,
    "scaled in place": lambda t, g: t.clone().mul_(g),
    "rejoined": lambda t, g: torch.cat([t[:2] * g[:2], t[2:]]),
    "data": lambda t, g: t.data * g.data,
    "without gradient": torch.no_grad()(lambda t, g: t * g.square()),
    "cast": lambda t, g: t.to(torch.float64).clone(),
    "written in part": _written_in_part,
}


def _networks(forms, seed=1):
    return Beside({name: _network(_Computed(form), seed) for name, form in forms.items()})


@pytest.mark.parametrize("seed", [1, 2])
def test_readings_are_those_of_a_network_with_the_computed_weight(seed):
    model = _networks(COMPUTED, seed)
    assert_each_replays(dict(model.items()), X, squares=False)
    twin = copy.deepcopy(model)
    for name, branch in twin.items():
        with torch.no_grad():
            branch[0].weight.copy_(COMPUTED[name](branch[0].weight, branch[0].gain))
        branch[0].compute = COMPUTED["itself"]
    for method in ("px", "px-literal", "synflow", "synflow-l2"):
        found, expected = (pathex.score(network, method, data=X) for network in (model, twin))
        for name, score in expected.items():
            # The network of ones has fixed factors as they are: they are the same for all paths of a branch.
            assert_equal(found[name] / found[name].sum(), score / score.sum(), name)
            if method != "px-literal":
                assert_equal(found[name], score, name)
        assert all((score >= 0).all() for score in found.values())


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_standardised_scores_are_sums_over_paths(seed, masked):
    model = _network(ScaledStdConv2d(3, 4, 1, bias=False, eps=1e-6), seed)
    keep = images(4, 3, 1, 1, seed=seed) > (-0.5 if masked else -99)
    theta, second = (model[0].weight.detach() * keep).numpy(), model[2].weight.detach().numpy()[..., 0, 0]
    weight = standardised(theta, model[0].gain.detach().flatten().numpy() * 3**-0.5, 1e-6)[..., 0, 0]
    on_paths = weight * keep.numpy()[..., 0, 0], second
    layers = X.flatten(2).numpy(), weight, second
    expected = scores_of_two_layers(*layers, np.ones_like, lambda hidden: hidden, on_paths)
    mask = pathex.Mask({"0.weight": keep, "2.weight": torch.ones(2, 4, 1, 1, dtype=torch.bool)})
    found = pathex.score(model, "px", data=X, mask=mask)
    for name, truth in zip(("0.weight", "2.weight"), expected, strict=True):
        torch.testing.assert_close(found[name][..., 0, 0], torch.from_numpy(truth), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found["0.weight"].sum(), found["2.weight"].sum())  # conserved from layer to layer


def _old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still used
        return torch.nn.utils.weight_norm(layer)


def _low_rank():
    """An addition that is not scored, and so is a fixed part."""
    parts = {"a": nn.Parameter(torch.ones(4, 1)), "b": nn.Parameter(torch.ones(1, 3))}
    return Wired(lambda net, weight: weight + (net.a @ net.b)[..., None, None], **parts)


PARAMETRIZED = {
    "weight norm": (parametrizations.weight_norm, "parametrizations.weight.original1"),
    "weight norm by inputs": (lambda m: parametrizations.weight_norm(m, dim=1), "parametrizations.weight.original1"),
    "weight norm as a hook": (_old_weight_norm, "weight_v"),
    "spectral norm": (parametrizations.spectral_norm, "parametrizations.weight.original"),
    "spectral norm as a hook": (torch.nn.utils.spectral_norm, "weight_orig"),
    "mask of torch": (lambda m: prune.random_unstructured(m, "weight", 5), "weight_orig"),
    "low rank": (
        lambda m: parametrize.register_parametrization(m, "weight", _low_rank()),
        "parametrizations.weight.original",
    ),
}


@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_parametrised_weights(kind):
    wrap, own = PARAMETRIZED[kind]
    model = _network(wrap(nn.Conv2d(3, 4, 1, bias=False)).eval())
    found = _px(model, f"0.{own}", "2.weight")
    twin = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False).double(), *model[1:])
    with torch.no_grad():
        model(X)
        twin[0].weight.copy_(model[0].weight)
    expected = _px(twin, "0.weight", "2.weight")
    assert_equal(found[f"0.{own}"], expected["0.weight"])
    assert_equal(found["2.weight"], expected["2.weight"])


@pytest.mark.parametrize("seed", [1, 2])
def test_what_a_computed_weight_connects_is_what_its_mask_does(seed):
    model, plain = _networks(COMPUTED), _networks(dict.fromkeys(COMPUTED, COMPUTED["itself"]))
    mask = {
        name: images(*weight.shape, seed=seed + number) > 0.3
        for number, (name, weight) in enumerate(prunable_weights(model).items())
    }
    found, expected = (connectivity(network, mask, X) for network in (model, plain))
    assert expected.disconnected
    for name, used in expected.effective.items():
        if not name.startswith(("masked", "symmetric")):  # which have entries in other places
            assert torch.equal(found.effective[name], used), name
    model = _network(prune.random_unstructured(nn.Conv2d(3, 4, 1, bias=False), "weight", 5))
    everything = {"0.weight_orig": torch.ones(4, 3, 1, 1, dtype=torch.bool)}
    assert torch.equal(connectivity(model, everything, X).effective["0.weight_orig"], model[0].weight_mask.bool())


def _of_two():
    layer = _Computed(lambda t, g: t + layer.other.weight)
    layer.other = nn.Conv2d(3, 4, 1)
    return layer


REFUSED = {
    "sums of entries": lambda: _Computed(lambda t, g: t.sum(1, keepdim=True).expand_as(t).contiguous()),
    "running sums": lambda: _Computed(lambda t, g: t.cumsum(1)),
    "mixed": lambda: _Computed(lambda t, g: (torch.full((4, 4), 0.25, dtype=t.dtype) @ t.flatten(1)).view_as(t)),
    "of two scored parameters": _of_two,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_keep_entries_of_one_parameter_in_place_is_refused(kind):
    with pytest.raises(UnsupportedOperation, match=r"computed from prunable weights.*in place"):
        pathex.score(_network(REFUSED[kind]()), "px", data=X)


def test_an_orthogonal_weight_is_refused():
    model = _network(parametrizations.orthogonal(nn.Conv2d(3, 4, 1)))
    with pytest.raises(UnsupportedOperation):
        _px(model, "0.parametrizations.weight.original", "2.weight")


CONFIG = NfCfg(depths=(1, 1), channels=(8, 16), stem_chs=8, group_size=4, attn_layer=None)


def _nf(**changes):
    return NormFreeNet(CONFIG, num_classes=3, drop_path_rate=0.0, **changes)


def _bit(**options):
    norm = lambda channels, **kwargs: GroupNormAct(channels, num_groups=4, **kwargs)  # noqa: E731
    return ResNetV2((1, 1), (16, 32), num_classes=3, stem_chs=8, norm_layer=norm, **options)


TIMM = {
    "bit": _bit,
    "bit basic same": lambda: _bit(stem_type="same", conv_layer=StdConv2dSame, basic=True, bottle_ratio=1.0),
    "nf resnet": lambda: _nf(act_layer="relu"),
    "nf silu": lambda: _nf(extra_conv=True, reg=True),
    "nfnet": lambda: _nf(
        same_padding=True, stem_type="deep_quad", gamma_in_act=True, extra_conv=True, act_layer="gelu"
    ),
    "nf with gates": lambda: _nf(attn_layer="se", attn_kwargs={"rd_ratio": 0.5}, skipinit=True),
}


def _with_plain_weights(model):
    """A copy whose standardised convolutions are plain ones with the effective weights."""
    twin = copy.deepcopy(model)
    for layer in twin.modules():
        if isinstance(layer, StdConv2d | StdConv2dSame | ScaledStdConv2d | ScaledStdConv2dSame):
            gain = layer.gain.flatten() * layer.scale if hasattr(layer, "gain") else torch.ones(len(layer.weight))
            weight = standardised(layer.weight.detach().numpy(), gain.detach().tolist(), layer.eps)
            layer.weight.data = torch.from_numpy(weight)
            same = getattr(layer, "same_pad", False)
            layer.__class__ = Conv2dSame if same else nn.Conv2d
    return twin


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("name", TIMM)
def test_standardised_networks_of_timm_are_scored_and_pruned(name):
    torch.manual_seed(0)
    model = TIMM[name]().double().eval()
    for key, entry in model.named_parameters():
        if key.endswith("gain"):
            entry.data.uniform_(0.5, 1.5)
    x = images(2, 3, 32, 32)
    twin = _with_plain_weights(model)
    assert_equal(twin(x), model(x))
    found, expected = (pathex.score(network, "px", data=x) for network in (model, twin))
    assert found.keys() == expected.keys()
    for key, score in expected.items():
        assert score.any(), key
        assert_equal(found[key] / score.sum(), score / score.sum())
    mask = pathex.prune(model, "px", sparsity=0.9, data=x, rounds=2, progress=False).mask
    assert mask.kept == round(0.1 * mask.total)
    assert all(keep.any() for keep in mask.values())
