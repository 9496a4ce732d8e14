"""Which parameters are read as one because they start at zero, and what a survey sees."""

from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.metaformer import MetaFormer
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import nn

from brute_force.cases import Wired
from pathex.graph import cost, held_bytes, trace
from pathex.masks import prunable_weights
from pathex.paths import lowered, read_scales, survey
from paths.oracle import channels_last

pytestmark = pytest.mark.filterwarnings("ignore:.* is derived for piecewise-linear")

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def _block(form, shape=(4,), value=0.0):
    """A residual block behind a scale of its own making."""
    gamma = nn.Parameter(torch.full(shape, value))
    return Wired(lambda net, x: x + form(net.conv(x), net.gamma), conv=nn.Conv2d(4, 4, 1), gamma=gamma)


def _blocks(forms, value=0.0):
    return nn.Sequential(*(_block(form, value=value) for form in forms.values()))


def _read(model, x=X):
    return read_scales(model, survey(trace(model, x)), set(prunable_weights(model)))


FACTORS = {
    "view": lambda x, g: x * g.view(-1, 1, 1),
    "in place": lambda x, g: x.mul_(g.view(1, 4, 1, 1)),
    "function": lambda x, g: torch.mul(x, other=g.unsqueeze(-1).unsqueeze(-1)),
    "expanded": lambda x, g: g.reshape(1, -1, 1, 1).expand_as(x) * x,
    "data": lambda x, g: x * g.data[:, None, None],
    "batch norm": lambda x, g: F.batch_norm(x, None, None, weight=g, training=True),
    "layer norm": lambda x, g: channels_last(lambda y: F.layer_norm(y, (4,), bias=None, weight=g))(x),
    "group norm": lambda x, g: F.group_norm(x, 2, g),
    "instance norm": lambda x, g: F.instance_norm(x, weight=g),
    "rms norm": lambda x, g: channels_last(lambda y: F.rms_norm(y, (4,), g))(x),
    "added product": lambda x, g: torch.addcmul(x, g.view(4, 1, 1), x.relu()),
    "added product in place": lambda x, g: x.clone().addcmul_(tensor1=g.view(4, 1, 1), tensor2=x),
    "interpolated": lambda x, g: torch.lerp(x, x.relu(), g.view(4, 1, 1)),
    "squashed": lambda x, g: x * g.tanh().view(4, 1, 1),
    "scaled": lambda x, g: x * (0.5 * g / 3).view(4, 1, 1),
    "cast": lambda x, g: x * g.to(x.dtype).float()[:, None, None],
    "of the weight": lambda x, g: F.conv2d(x, torch.eye(4).view(4, 4, 1, 1) * g.view(4, 1, 1, 1)),
}
OTHERS = {
    "added": lambda x, g: x + g.view(-1, 1, 1),
    "shift": lambda x, g: F.group_norm(x, 2, None, g) + F.instance_norm(x, bias=g),
    "gate": lambda x, g: x * g.sigmoid().view(4, 1, 1),
    "exponential": lambda x, g: x * g.exp().view(4, 1, 1),
    "one more": lambda x, g: x * (1 + g).view(4, 1, 1),
    "divisor": lambda x, g: x / (g + 1).view(4, 1, 1),
    "position": lambda x, g: x + 2 * g.view(4, 1, 1),
    "added constants": lambda x, g: torch.addcmul(x, g.view(4, 1, 1), torch.ones(4, 1, 1)),
    "start of an interpolation": lambda x, g: torch.lerp(g.view(4, 1, 1), x, 0.5),
    "bias": lambda x, g: F.conv2d(x, torch.eye(4).view(4, 4, 1, 1), g),
}


@pytest.mark.parametrize("value", [0.0, 1e-6, 1e-5, -1e-3, 0.01, 0.1, 0.5, 1.0])
def test_small_equal_factors_are_read_as_one_and_others_are_taken_as_they_are(value):
    model = _blocks(FACTORS, value)
    scales = _read(model)
    assert set(scales) == {f"{number}.gamma" for number in range(len(FACTORS)) if value < 0.01}
    assert all(torch.equal(scale, torch.ones(4)) for scale in scales.values())
    with torch.no_grad():
        model[0].gamma[1] = 1e-4
    assert "0.gamma" not in _read(model)
    numbers = nn.Sequential(_block(lambda x, g: x.mul_(g), (1,), value), _block(lambda x, g: g * x, (), value))
    assert [scale.shape for scale in _read(numbers).values()] == ([(1,), ()] if value < 0.01 else [])


def test_what_does_not_make_a_block_vanish():
    assert _read(_blocks(OTHERS)) == {}
    model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    assert survey(trace(model, X)).factors == {"1.weight"}
    assert _read(model) == {}


GAINS = {
    "weight norm": lambda w, g: torch._weight_norm(w, g.view(4, 1, 1, 1), 0),
    "by hand": lambda w, g: g.view(4, 1, 1, 1) * (w - w.mean()) / w.std(),
    "normalised": lambda w, g: F.normalize(w, dim=1) * g.view(4, 1, 1, 1),
    "batch norm": lambda w, g: F.batch_norm(w.view(1, 4, -1), None, None, g, None, True).view_as(w),
}


def test_weights_and_gains_in_the_order_of_their_calls():
    layers = []
    for form in GAINS.values():
        parts = {"gain": nn.Parameter(torch.zeros(4)), "weight": nn.Parameter(torch.randn(4, 4, 1, 1))}
        layers.append(Wired(lambda net, x, form=form: F.conv2d(x, form(net.weight, net.gain)), **parts))
    backwards = {"head": nn.Linear(4, 2), "stem": nn.Conv2d(4, 4, 1), "unused": nn.Linear(1, 1)}
    model = nn.Sequential(*layers, Wired(lambda net, x: net.head(net.stem(x).relu().mean((2, 3))), **backwards))
    found = survey(trace(model, X))
    assert found.weights == ("0.weight", "1.weight", "2.weight", "3.weight", "4.stem.weight", "4.head.weight")
    assert found.factors == {f"{number}.gain" for number in range(4)}
    assert list(_read(model)) == [f"{number}.gain" for number in range(4)]


def test_the_cost_is_that_of_one_image():
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    for count in (1, 2, 3):
        found = cost(trace(model, X[:count]))
        assert (found.activations, found.largest) == (288 + 288 + 5, 288)
        assert found.products == {"0.weight": 36 * 32, "0.bias": 0, "3.weight": 288 * 5, "3.bias": 0}


PRODUCTS = {
    "a matrix": (lambda x, w: x @ w, 80, 0),
    "a matrix on the left": (lambda x, w: torch.matmul(w, x.mT), 80, 0),
    "einsum": (lambda x, w: torch.einsum("bnd,de->bne", x, w), 80, 0),
    "einsum on the left": (lambda x, w: torch.einsum("ed, b...d -> b...e", w, x), 80, 0),
    "einsum without a result": (lambda x, w: torch.einsum("bnd,de", x, w), 80, 0),
    "attention by einsum": (lambda x, w: torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", x, x), x), 0, 200),
    "a bilinear layer": (lambda x, w: F.bilinear(x, x, w[None]), 80, 0),
    "inner": (torch.inner, 80, 0),
    "tensordot": (lambda x, w: torch.tensordot(x, w, 1), 80, 0),
    "tensordot on the left": (lambda x, w: torch.tensordot(w, x, ([1], [-1])), 80, 0),
    "a weight that another product makes": (lambda x, w: x @ (w @ torch.ones(4, 4)), 64, 80),
    "a diagonal": (lambda x, w: torch.einsum("ii->i", w) * x, 0, 0),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_count_for_their_weight_however_they_are_written(name):
    form, own, others = PRODUCTS[name]
    model = Wired(lambda net, x: form(x, net.weight), weight=nn.Parameter(torch.randn(4, 4)))
    found = cost(trace(model, torch.randn(2, 5, 4)))
    assert (found.products["weight"], found.others) == (own, others)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_network_of_a_fixed_number_of_images_costs_the_same(number):
    images = X[:1].expand(number, -1, -1, -1)
    parts = {"first": nn.Conv2d(4, 3, 3), "last": nn.Linear(3 * 16, 2)}
    fixed = trace(Wired(lambda net, x: net.last(net.first(x).relu().view(len(x), -1)), **parts), images)
    free = trace(Wired(lambda net, x: net.last(net.first(x).relu().view(x.shape[0], -1)), **parts), images)
    assert fixed.fixed_batch == number and free.fixed_batch is None
    assert cost(fixed) == cost(free)
    assert held_bytes(lowered(fixed), torch.float32) == held_bytes(lowered(free), torch.float32)


@pytest.mark.parametrize(
    ("result", "output", "heads"),
    [
        (lambda a, b, c: (a + b) / 2, None, ["one", "two"]),
        (lambda a, b, c: {"out": a, "aux": c}, None, ["one"]),
        (lambda a, b, c: {"out": a, "aux": c}, "aux", ["beside"]),
        (lambda a, b, c: (b.view(-1, 2, 2), a), None, ["two"]),
        (lambda a, b, c: torch.cat([a, b, c], 1), None, ["one", "two", "beside"]),
    ],
)
def test_heads_of_zeros_are_read_as_one_and_a_hidden_layer_of_zeros_is_not(result, output, heads):
    def form(net, x):
        x = net.hidden(x).relu()
        return result(net.one(x), net.two(x), net.beside(x))

    model = Wired(form, **{name: nn.Linear(4, 4) for name in ("hidden", "one", "two", "beside")})
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    found = survey(trace(model, torch.randn(3, 4), output=output))
    assert found.heads == tuple(f"{name}.weight" for name in heads)
    assert list(read_scales(model, found, set(prunable_weights(model)))) == list(found.heads)


def test_a_head_of_zeros_written_as_a_matrix_product():
    proj = nn.Parameter(torch.zeros(4, 2))
    model = Wired(lambda net, x: net.body(x).relu() @ net.proj, body=nn.Linear(4, 4), proj=proj)
    nn.init.zeros_(model.body.weight)
    found = survey(trace(model, torch.randn(3, 4)))
    assert (found.weights, found.heads) == (("body.weight", "proj"), ("proj",))
    assert list(read_scales(model, found, {"body.weight", "proj"})) == ["proj"]


_SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
_NF = {"depths": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_chs": 8}
_VIT = {"depth": 2, "img_size": 32}
_SWIN = {"depths": (1, 1), "num_heads": (2, 2), "embed_dim": 8, "img_size": 32}
_MIXER = {"num_blocks": 2, "embed_dim": 16, "img_size": 32}
_RES = {"mlp_ratio": 4, "block_layer": ResBlock, "norm_layer": Affine}
_POOLED = {**_SMALL, "norm_layers": timm.layers.GroupNorm1, "layer_scale_init_values": 1e-5}
# Network, and its options -> words in the names of its parameters that start at zero or almost there, and their number.
STARTS = {
    "convnext": ("convnext_atto", _SMALL, ("gamma",), 4),
    "convnextv2": ("convnextv2_atto", _SMALL, ("grn.weight",), 4),
    "cait": ("cait_xxs24_224", _VIT, ("gamma_1", "gamma_2"), 8),
    "resmlp": (MlpMixer, {**_MIXER, **_RES}, ("ls1", "ls2", "head.weight"), 5),
    "mixer": (MlpMixer, _MIXER, ("head.weight",), 1),
    "poolformer": (MetaFormer, _POOLED, ("layer_scale1.scale", "layer_scale2.scale"), 8),
    "deit3": ("deit3_small_patch16_224", _VIT, ("ls1.gamma", "ls2.gamma"), 4),
    "swinv2": ("swinv2_tiny_window8_256", _SWIN, ("norm1.weight", "norm2.weight"), 4),
    "nf_resnet": ("nf_resnet26", _NF, ("conv3.gain",), 4),
    "nf_resnet with skips": ("nf_resnet26", {**_NF, "skipinit": True}, ("skipinit_gain",), 4),
    "levit": ("levit_128s", {"depth": (1, 1, 1), "img_size": 32}, ("bn.weight",), 8),
    "resnet": ("resnet10t", {}, ("bn2.weight",), 4),
    "edgenext": ("edgenext_xx_small", {**_SMALL, "heads": (2, 2, 2, 2)}, ("gamma", "gamma_xca"), 7),
}


LARGE = ("cait", "edgenext", "levit", "swinv2")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in STARTS])
def test_networks_of_timm_that_start_at_zero(name):
    make, options, words, count = STARTS[name]
    create = partial(timm.create_model, make) if isinstance(make, str) else make
    scales = _read(create(num_classes=3, **options), torch.randn(1, 3, 32, 32))
    assert len(scales) == count
    assert all(key.endswith(words) for key in scales)
