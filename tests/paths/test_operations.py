"""Every operation with a rule, over its arguments, against the Jacobian of the real module."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathex
from brute_force.cases import Wired
from pathex.errors import UnsupportedOperation
from pathex.graph import trace
from pathex.paths import Linear, Weights, lowered, record, replay, replay_open, run_linear
from pathex.paths.rules import layers
from paths.oracle import Beside, assert_each_replays, assert_equal, between, draws, images, linear_map
from paths.tables import ACTIVATIONS, ATTENTION, GATED, GATES, TABLES, WEIGHED

pytestmark = pytest.mark.filterwarnings("ignore:px is derived for piecewise-linear")


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


def test_a_gate_is_closed_at_its_kink_and_an_open_one_lets_everything_pass():
    kinks = torch.tensor([[0.0, 6.0, 3.0]], dtype=torch.float64)
    model = between(nn.ReLU6())
    assert replay(model, torch.ones_like(kinks), record(model, kinks)).tolist() == [[0.0, 0.0, 1.0]]
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


def block(form):
    """Two convolutions, one of them used twice in some forms."""
    convs = {"first": nn.Conv2d(3, 6, 3, padding=1, bias=False), "second": nn.Conv2d(6, 6, 3, padding=1, groups=2)}
    norms = {"bn1": nn.BatchNorm2d(6), "bn2": nn.BatchNorm2d(6, affine=False)}
    nn.init.uniform_(norms["bn1"].weight, -2, 2)
    return Wired(lambda net, x: net.head(form(net, x).mean((2, 3))), **convs, **norms, head=nn.Linear(6, 4)).double()


def second(net, y):
    return F.relu(net.bn2(net.second(F.relu_(y))))


def weight_used_twice(net, x):
    y = F.relu(net.bn1(net.first(x)))
    return F.relu(net.bn2(net.second(y))) + F.relu(net.bn1(net.second(F.max_pool2d(y, 2)))).mean((2, 3), keepdim=True)


def asks_for_the_form(net, x):
    y = net.first(x)
    assert y.shape[1] == 6 and y.dim() == 4 and y.is_floating_point()
    return second(net, net.bn1(y))


# What is done, and which weights wait for their BatchNorm.
BOTH = {"first.weight", "second.weight"}
FUSED = {
    "result also added": (lambda net, x: second(net, net.bn1(y := net.first(x)) + y), {"second.weight"}),
    "result changed in place": (lambda net, x: second(net, net.bn1(net.first(x).mul_(2))), {"second.weight"}),
    "normalised twice": (lambda net, x: second(net, net.bn1(y := net.first(x))) + net.bn2(y), {"second.weight"}),
    "weight used twice": (weight_used_twice, BOTH),
    "weight normalised once": (lambda net, x: net.second(F.relu(second(net, net.bn1(net.first(x))))), BOTH),
    "asks for the form": (asks_for_the_form, BOTH),
}


@pytest.mark.parametrize("coefficients", ["plain", "squared", "ones", "absolute"])
@pytest.mark.parametrize("name", FUSED)
def test_convolutions_that_wait_for_their_norm_are_the_same_map(name, coefficients, monkeypatch):
    form, fused = FUSED[name]
    torch.manual_seed(0)
    net, x = block(form), torch.randn(5, 3, 6, 6, dtype=torch.float64)
    recording = record(net, x)
    graph = lowered(trace(net, x))
    found = []
    for fuses in (True, False):
        if not fuses:
            monkeypatch.setattr("pathex.paths.rules.layers.norm_of", lambda reading, node: None)
        weights = Weights(net, torch.float64, scored=["first.weight", "second.weight", "head.weight"])
        reading = Linear(graph, weights, recording.tape, recording.statistics, coefficients)
        convolutions = [node for node in graph.path if node.op == "conv2d"]
        if fuses:
            alone = [node["weight"].target for node in convolutions if layers.norm_of(reading, node) is not None]
            assert set(alone) == fused
        out = run_linear(reading, [x])
        found.append((out.detach(), reading.scores(out.square().sum())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-11)


def test_a_convolution_that_is_the_output_is_not_fused():
    layers = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4)}
    net = Wired(lambda net, x: ((y := net.conv(x)), net.bn(y)), **layers)
    net, x = net.double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    recording = record(net, x)
    torch.testing.assert_close(replay(net, x, recording), F.conv2d(x, net.conv.weight.square()), rtol=1e-11, atol=1e-12)


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
    model, x, z = between(ATTENTION["plain"]), images(1, 1, 3, 6), images(1, 1, 3, 6, seed=5).abs()
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


OPENED = {
    "product": (lambda x: x[:, :2] * x[:, 2:], lambda z: z[:, :2] + z[:, 2:]),
    "excited": (GATED["squeeze and excite"], lambda z: z + z.sum(-1, keepdim=True) / 9),  # a mean, squared
    "shares": (GATED["softmax"], lambda z: z),
    "quotient": (lambda x: x / (1 + x.sigmoid()), lambda z: 2 * z),
    "root of the mean square": (lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-3), lambda z: z),
    "quotient by it": (lambda x: x / (x.square().mean(1, keepdim=True) + 1e-3).sqrt(), lambda z: z),
    "norm": (lambda x: F.normalize(x, dim=1), lambda z: z),
    "sum of sizes": (lambda x: F.normalize(x, 1, dim=1), lambda z: z),
}


@pytest.mark.parametrize("name", OPENED)
def test_coefficients_of_a_sample_have_no_open_reading_unless_told(name):
    form, opened = OPENED[name]
    model, z = between(form), images(3, 4, 2, 3)
    with pytest.raises(UnsupportedOperation, match="per_sample"):
        replay_open(model, z, statistics="running")
    assert_equal(replay_open(model, z, statistics="running", per_sample="one"), opened(z))


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
