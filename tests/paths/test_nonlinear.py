"""Smooth activations, products and attention beyond their Jacobians: secants, open readings, scores."""

import math

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import Wired
from pathex.errors import UnsupportedOperation
from pathex.paths import record, replay, replay_open
from paths.oracle import Beside, Between, assert_equal, draws, images, linear_map
from paths.tables import ACTIVATIONS, ATTENTION, GATED

pytestmark = pytest.mark.filterwarnings("ignore:px is derived for piecewise-linear")


def test_the_secant_gives_the_value_and_mixed_both():
    model, x = Beside(ACTIVATIONS), images(3, 5, scale=2.0)
    x[0, 0], x[1, 1] = 0.0, -0.0
    truth = model(x.clone()).detach()
    for smooth in ("secant", "mixed"):
        recording = record(model, x, smooth=smooth)
        assert_equal(recording.output, truth)
        assert_equal(replay(model, x, recording, coefficients="plain"), truth)
    slopes = replay(model, torch.ones_like(x), record(model, x), coefficients="plain")
    # Mixed: the gradient is the tangent's, squared in the squared network.
    start = torch.ones_like(x).requires_grad_()
    mixed = model.results(replay(model, start, record(model, x, smooth="mixed")), [x] * len(ACTIVATIONS))
    for name, form, slope, out in zip(ACTIVATIONS, model.operations, model.results(slopes, mixed), mixed, strict=True):
        # Where the input is zero the secant is the slope there.
        limit = linear_map(form, torch.zeros_like(x)).diagonal().view_as(x)
        assert_equal(slope[0, 0], limit[0, 0], name)
        assert_equal(slope[1, 1], limit[1, 1], name)
        (back,) = torch.autograd.grad(out.sum(), start, retain_graph=True)
        assert_equal(back, linear_map(form, x).diagonal().view_as(x).square(), name)


def _changes_its_factors(x):
    a, b = x.chunk(2, 1)
    a = a.clone()
    product = a * b
    a.mul_(a).mul_(b)
    return torch.cat([product, a], 1)


def _keeps_its_factors(x):
    a, b = x.chunk(2, 1)
    return torch.cat([a * b, a * a * b], 1)


WRITTEN = {
    "product": (_changes_its_factors, _keeps_its_factors),
    "softmax": (lambda y: y.softmax(-1).mul_(0.5), lambda y: y.softmax(-1) * 0.5),
}


def test_what_is_written_into_a_factor_does_not_reach_the_recording():
    x, z = images(3, 8), images(3, 8, seed=4)
    written, kept = (Beside({name: forms[side] for name, forms in WRITTEN.items()}) for side in (0, 1))
    recordings = [record(model, x) for model in (written, kept)]
    assert_equal(recordings[0].output, recordings[1].output)
    assert_equal(replay(written, z, recordings[0]), replay(kept, z, recordings[1]))


@pytest.mark.parametrize("form", [lambda x: x.relu().norm(dim=(2, 3)), lambda x: x.relu().std(dim=(2, 3))])
def test_a_dead_channel_has_no_infinite_slope(form):
    layers = {"conv": nn.Conv2d(2, 3, 1, bias=False), "head": nn.Linear(3, 2)}
    model = draws(Wired(lambda net, x: net.head(form(net.conv(x))), **layers))
    with torch.no_grad():
        model.conv.weight[0] = 0
        model.head.weight.mul_(100)
    scores = pathex.score(model, "px", images(4, 2, 5, 5))
    assert all(score.isfinite().all() for score in scores.values())
    assert not scores["conv.weight"][0].any()
    assert scores["conv.weight"][1:].any()


def test_a_padded_transformer_encoder():
    def encode(net, x):
        padding = torch.tensor([[False, False, True]]).expand(len(x), 3)
        return net.head(net.encoder(x, src_key_padding_mask=padding).mean(1))

    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), 1)
    model = draws(Wired(encode, encoder=encoder, head=nn.Linear(4, 2)))
    assert all(score.any() for score in pathex.score(model, "px", images(4, 3, 4)).values())
    assert torch.backends.mha.get_fastpath_enabled()


def test_squared_attention_is_what_its_formula_says():
    model, x, z = Between(ATTENTION["plain"]), images(1, 1, 3, 6), images(1, 1, 3, 6, seed=5).abs()
    found = replay(model, z, record(model, x))
    q, k, v = x[0, 0].chunk(3, -1)
    zq, zk, zv = z[0, 0].chunk(3, -1)
    shares = (q @ k.T / math.sqrt(2)).softmax(-1)
    expected = torch.zeros(3, 2, dtype=torch.float64)
    for i in range(3):
        logits = [sum(q[i, c] ** 2 * zk[j, c] + k[j, c] ** 2 * zq[i, c] for c in range(2)) / 2 for j in range(3)]
        for j in range(3):
            share = sum((shares[i, j] * (float(j == m) - shares[i, m])) ** 2 * logits[m] for m in range(3))
            expected[i] += shares[i, j] ** 2 * zv[j] + share * v[j] ** 2
    assert_equal(found[0, 0], expected)


@pytest.mark.parametrize("name", ["squeeze and excite", "softmax", "normalize", "star"])
def test_coefficients_of_a_sample_have_no_open_reading_unless_told(name):
    model, x = Between(GATED[name]), images(2, 4, 3).abs()
    with pytest.raises(UnsupportedOperation, match="per_sample"):
        replay_open(model, x, statistics="running")
    assert replay_open(model, x, statistics="running", per_sample="one").shape == model(x).shape


def test_a_product_that_is_open_adds_its_branches():
    x = images(2, 4).abs()
    out = replay_open(Between(lambda y: y[:, :2] * y[:, 2:]), x, statistics="running", per_sample="one")
    assert_equal(out, x[:, :2] + x[:, 2:])


def test_open_attention_averages_over_what_its_products_contract():
    parts = {name: nn.Linear(3, 4, bias=False) for name in ("queries", "keys", "values")}
    model = Wired(lambda net, x: (net.queries(x) @ net.keys(x).mT).softmax(-1) @ net.values(x), **parts).double()
    x = images(2, 5, 3).abs().double()
    q, k, v = (x @ parts[name].weight.detach().abs().T for name in ("queries", "keys", "values"))
    similar = (q[:, :, None] + k[:, None]).mean(-1)
    expected = (similar[:, :, :, None] + v[:, None]).mean(2)
    found = replay_open(model, x, statistics="running", coefficients="absolute", per_sample="one")
    assert_equal(found, expected)


def test_weights_that_feed_a_gate_have_the_score_of_its_squared_jacobian():
    layers = {"value": nn.Linear(3, 4), "gate": nn.Linear(3, 4), "head": nn.Linear(4, 2)}
    model = Wired(lambda net, x: net.head(net.value(x) * net.gate(x).sigmoid()), **layers).double()
    x = images(5, 3)
    scores = pathex.score(model, "px", x)
    value, gate = model.value(x), model.gate(x).sigmoid()
    slopes = {"gate": value * gate * (1 - gate), "value": gate}
    for name, slope in slopes.items():
        back = model.head.weight.square().sum(0) * slope.square()  # (N, 4)
        expected = torch.einsum("no,ni->oi", back, x.square()) * getattr(model, name).weight.square()
        assert_equal(scores[f"{name}.weight"], expected, name)
