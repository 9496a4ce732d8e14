"""Smooth activations, products of branches, attention and choices against the Jacobian of the real module."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pathex
from brute_force.cases import Wired
from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.paths import record, replay, replay_open
from paths.oracle import Beside, Between, assert_each_replays, assert_equal, draws, images, linear_map

pytestmark = pytest.mark.filterwarnings(
    "ignore:px.* is derived for piecewise-linear", "ignore:synflow.* is derived for piecewise-linear"
)

Form = Callable[[Tensor], Tensor]


ACTIVATIONS: dict[str, Form] = {
    "gelu": F.gelu,
    "gelu tanh": nn.GELU(approximate="tanh"),
    "silu": lambda x: F.silu(x, inplace=True),
    "mish": nn.Mish(inplace=True),
    "hardswish": nn.Hardswish(),
    "elu": nn.ELU(0.7, inplace=True),
    "selu": nn.SELU(),
    "celu": nn.CELU(0.5, inplace=True),
    "tanh": lambda x: x.tanh_(),
    "softsign": nn.Softsign(),
    "tanhshrink": nn.Tanhshrink(),
    "softshrink": nn.Softshrink(0.3),
    "hardshrink": nn.Hardshrink(0.3),
    "sin": torch.sin,
}


def _shifted_choice(x: Tensor) -> Tensor:
    index = x.argmax(1, keepdim=True)
    index += 1
    index %= x.shape[1]
    return x.gather(1, index)


def _inverted(x: Tensor) -> Tensor:
    mask = x > 0
    mask.logical_not_()
    return x * mask.to(x.dtype)


FUNCTIONS: dict[str, Form] = {
    "sigmoid": lambda x: x.sigmoid_(),
    "hardsigmoid": nn.Hardsigmoid(inplace=True),
    "softplus": nn.Softplus(2.0, 3.0),
    "logsigmoid": nn.LogSigmoid(),
    "exp": torch.exp,
    "log": lambda x: (x + 9).log(),
    "sqrt": lambda x: (x + 9).sqrt(),
    "rsqrt": lambda x: torch.rsqrt(x + 9),
    "square": torch.square,
    "power": lambda x: x**3,
    "pow": lambda x: torch.pow(x, 2),
    "power of a number": lambda x: 2**x,
    "itself squared": lambda x: x * x,
    "abs": abs,
    "reciprocal": lambda x: 1 / (x + 9),
    "reciprocal of a sum": lambda x: (x + 9).reciprocal(),
    "cos": torch.cos,
    "erf": torch.erf,
    "round": lambda x: x + x.round(),
    "compared": lambda x: x * (x > 0.3).to(x.dtype),
    "where": lambda x: torch.where(x > 0.2, x, -2 * x),
    "where a number": lambda x: torch.where(x > 0.2, x, 0.5),
    "masked fill": lambda x: x.masked_fill(x < 0, 3.0),
    "masked fill in place": lambda x: x.masked_fill_(x < 0, 3.0),
    "maximum of a number": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "a choice changed in place": _shifted_choice,
    "a comparison changed in place": _inverted,
}


def test_the_secant_gives_the_value_and_mixed_both() -> None:
    model, x = Beside(ACTIVATIONS), images(3, 5, scale=2.0)
    x[0, 0], x[1, 1] = 0.0, -0.0
    truth = model(x.clone()).detach()
    for smooth in ("secant", "mixed"):
        recording = record(model, x, smooth=smooth)  # type: ignore[arg-type]
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


def test_smooth_must_be_known() -> None:
    with pytest.raises(InvalidInput, match="secant, tangent, mixed"):
        record(Between(F.gelu), images(2, 3), smooth="chord")  # type: ignore[arg-type]


# -- products ----------------------------------------------------------------------------------------------------------

HALVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mul": lambda a, b: a * b,
    "mul in place": lambda a, b: a.clone().mul_(b),
    "broadcast": lambda a, b: a * b[:, :1],
    "div": lambda a, b: a / (b + 9),
    "div in place": lambda a, b: a.clone().div_(b + 9),
    "matmul": lambda a, b: a @ b.T,
    "bmm": lambda a, b: torch.bmm(a[:, :, None], b[:, None, :]),
    "einsum": lambda a, b: torch.einsum("nc,nd->ncd", a, b),
    "einsum of three": lambda a, b: torch.einsum("nc,cd,nd->ncd", a, _matrix(a), b),
    "addcmul": lambda a, b: torch.addcmul(torch.ones_like(a), a, b, value=0.5),
    "baddbmm": lambda a, b: torch.baddbmm(_matrix(a)[None], a[None].mT, b[None], beta=0.5, alpha=2.0),
    "lerp": lambda a, b: torch.lerp(a, b, 0.25),
    "linear": F.linear,
    "conv": lambda a, b: F.conv1d(a[:, None], b[:, None, :2]),
    "maximum": torch.maximum,
    "max of two": torch.max,
    "minimum": torch.minimum,
}


def _matrix(like: Tensor) -> Tensor:
    return torch.arange(1.0, 17.0, dtype=like.dtype).view(4, 4)


def _of_halves(form: Callable[[Tensor, Tensor], Tensor]) -> Form:
    return lambda x: form(*x.chunk(2, 1))


BY_A_MATRIX: dict[str, Form] = {
    "matmul": lambda x: x @ _matrix(x),
    "addmm": lambda x: torch.addmm(torch.ones_like(x), x, _matrix(x)),
    "einsum": lambda x: torch.einsum("nc,cd->nd", x, _matrix(x)),
    "mv": lambda x: torch.mv(_matrix(x), x[0]),
}
SOFTMAX: dict[str, Form] = {
    "softmax of images": lambda x: x.softmax(0),
    "softmax": lambda x: x.softmax(1),
    "softmax of the last": lambda x: x.softmax(-1),
    "log softmax of images": lambda x: x.log_softmax(0),
    "log softmax": lambda x: x.log_softmax(1),
}


def _changes_its_factors(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    a = a.clone()
    product = a * b
    a.mul_(a).mul_(b)
    return torch.cat([product, a], 1)


def _keeps_its_factors(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([a * b, a * a * b], 1)


def test_what_is_written_into_a_factor_does_not_reach_the_recording() -> None:
    x, z = images(3, 8), images(3, 8, seed=4)
    pairs: dict[str, Form] = {
        "product": _changes_its_factors,
        "kept product": _keeps_its_factors,
        "softmax": lambda y: y.softmax(-1).mul_(0.5),
        "kept softmax": lambda y: y.softmax(-1) * 0.5,
    }
    model = Beside(pairs)
    recording = record(model, x)
    for found in (recording.output, replay(model, z, recording)):
        product, kept_product, softmax, kept_softmax = model.results(found, [x] * 4)
        assert_equal(product, kept_product)
        assert_equal(softmax, kept_softmax)


GATED: dict[str, Form] = {
    "squeeze and excite": lambda x: x * torch.sigmoid(x.mean(-1, keepdim=True)),
    "glu": lambda x: F.glu(x, 1),
    "manual swish": lambda x: x * x.sigmoid(),
    "star": lambda x: F.relu6(x[:, :2]) * x[:, 2:],
    "normalize": lambda x: F.normalize(x, dim=-1),
    "norm": lambda x: x.norm(dim=-1, keepdim=True),
    "vector norm": lambda x: torch.linalg.vector_norm(x, dim=-1),
    "norm of order one": lambda x: x.norm(1, dim=-1),
    "variance": lambda x: x.var(-1),
    "deviation": lambda x: x.std(-1, keepdim=True),
    "variance and mean": lambda x: torch.cat(torch.var_mean(x, -1, keepdim=True), -1),
    "biased variance": lambda x: torch.var(x, dim=-1, correction=0),
    "variance of all": lambda x: x.var(unbiased=False),
    "softmax": lambda x: x.softmax(-1),
    "softmax of channels": nn.Softmax(1),
    "softmin": lambda x: F.softmin(x, -1),
    "log softmax": lambda x: F.log_softmax(x, -1),
    "amax": lambda x: x.amax(-1),
    "amin over two": lambda x: x.amin((1, 2), keepdim=True),
    "max": lambda x: x.max(-1).values,
    "max and place": lambda x: x.max(1, keepdim=True)[0],
    "max of all": lambda x: x.max(),
    "min": lambda x: torch.min(x, dim=2).values,
    "sort": lambda x: torch.sort(x, -1, descending=True)[0],
    "topk": lambda x: x.topk(2, -1).values,
    "topk of channels": lambda x: x.topk(2, dim=1)[0],
    "maxout": lambda x: torch.stack([x, 2 * x.flip(1)]).max(0).values,
    "torch.norm": lambda x: torch.norm(x, dim=-1),
    "linalg norm": lambda x: torch.linalg.norm(x, dim=-1),
    "method where": lambda x: x.where(x > 0, 0.1 * x),
    "argmax": lambda x: x * F.one_hot(x.argmax(-1), 3).to(x.dtype),
}


@pytest.mark.parametrize("form", [lambda x: x.relu().norm(dim=(2, 3)), lambda x: x.relu().std(dim=(2, 3))])
def test_a_dead_channel_has_no_infinite_slope(form: Form) -> None:
    layers = {"conv": nn.Conv2d(2, 3, 1, bias=False), "head": nn.Linear(3, 2)}
    model = draws(Wired(lambda net, x: net.head(form(net.conv(x))), **layers))
    with torch.no_grad():
        model.conv.weight[0] = 0  # type: ignore[union-attr, index]
        model.head.weight.mul_(100)  # type: ignore[union-attr, operator]
    scores = pathex.score(model, "px", images(4, 2, 5, 5))
    assert all(score.isfinite().all() for score in scores.values())
    assert not scores["conv.weight"][0].any()
    assert scores["conv.weight"][1:].any()


def test_a_padded_transformer_encoder() -> None:
    def encode(net: Wired, x: Tensor) -> Tensor:
        padding = torch.tensor([[False, False, True]]).expand(len(x), 3)
        return net.head(net.encoder(x, src_key_padding_mask=padding).mean(1))

    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), 2)
    model = draws(Wired(encode, encoder=encoder, head=nn.Linear(4, 2)))
    assert all(score.any() for score in pathex.score(model, "px", images(4, 3, 4)).values())
    assert torch.backends.mha.get_fastpath_enabled()


# -- attention ---------------------------------------------------------------------------------------------------------


def _attended(x: Tensor, **options: object) -> Tensor:
    q, k, v = x.chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]


MASK = torch.tensor([[True, False, True], [True, True, False], [True, True, True]])
BLIND = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
ATTENTION: dict[str, Form] = {
    "plain": _attended,
    "scaled": lambda x: _attended(x, scale=0.3),
    "masked": lambda x: _attended(x, attn_mask=MASK),
    "a query that sees no key": lambda x: _attended(x, attn_mask=BLIND),
    "biased": lambda x: _attended(x, attn_mask=torch.arange(9.0, dtype=x.dtype).view(3, 3)),
    "causal": lambda x: _attended(x, is_causal=True),
    "grouped": lambda x: F.scaled_dot_product_attention(x[..., :2], x[:, :1, :, 2:4], x[:, :1, :, 4:], enable_gqa=True),
}


# Operations, images, and whether no entry of the Jacobian collects two terms, so that its square is exact.
TABLES: dict[str, tuple[dict[str, Form], Tensor, bool]] = {
    "elementwise": ({**ACTIVATIONS, **FUNCTIONS}, images(3, 5, scale=2.0), True),
    "products of two branches": ({name: _of_halves(form) for name, form in HALVES.items()}, images(3, 8), True),
    "a product of three": ({"": lambda x: torch.einsum("nc,nc,nc->n", *x.chunk(3, 1)) / 2}, images(3, 12), False),
    "products with a matrix": (BY_A_MATRIX, images(4, 4), True),
    "softmax": (SOFTMAX, images(3, 4, scale=3.0), True),
    "gated": (GATED, images(2, 4, 3), False),
    "attention": (ATTENTION, images(2, 2, 3, 6), False),
}


@pytest.mark.parametrize("table", TABLES)
def test_readings_are_those_of_the_jacobian(table: str) -> None:
    forms, x, squares = TABLES[table]
    assert_each_replays(forms, x, squares=squares)


def test_squared_attention_is_what_its_formula_says() -> None:
    x, z = images(1, 1, 3, 6), images(1, 1, 3, 6, seed=5).abs()
    found = replay(Between(_attended), z, record(Between(_attended), x))
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


class _Attends(nn.MultiheadAttention):
    def __init__(self, need_weights: bool = False, **options: Any) -> None:
        super().__init__(4, 2, **options)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        out, weights = super().forward(x, x, x, need_weights=self.need_weights)
        return out if weights is None else out + weights.mean()


class _Masked(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        padding = torch.tensor([[False, False, True], [False, True, False]])
        each = torch.zeros(4, 3, 3, dtype=x.dtype)
        each[0, 1, 2] = -1.0
        return super().forward(x, x, x, key_padding_mask=padding, attn_mask=each)[0]


class _Unnormalised(nn.TransformerEncoderLayer):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = x + self._sa_block(x, None, None)
        return x + self._ff_block(x)


def test_multi_head_attention() -> None:
    kinds: list[dict[str, Any]] = [{}, {"batch_first": True}, {"bias": False}, {"kdim": 4, "vdim": 4}]
    modules = {f"{kind} {needed}": draws(_Attends(needed, **kind)) for kind in kinds for needed in (False, True)}
    assert_each_replays(modules, images(3, 2, 4), squares=False)


def test_masked_attention_and_a_transformer_layer() -> None:
    layers = {"masked": _Masked(4, 2, batch_first=True), "layer": _Unnormalised(4, 2, 6, 0.1, F.gelu, batch_first=True)}
    with pytest.warns(UserWarning, match="mismatched"):
        assert_each_replays({k: draws(layer) for k, layer in layers.items()}, images(2, 3, 4), squares=False)


# -- open --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["squeeze and excite", "softmax", "normalize", "star"])
def test_coefficients_of_a_sample_have_no_open_reading_unless_told(name: str) -> None:
    model, x = Between(GATED[name]), images(2, 4, 3).abs()
    with pytest.raises(UnsupportedOperation, match="per_sample"):
        replay_open(model, x, statistics="running")
    assert replay_open(model, x, statistics="running", per_sample="one").shape == model(x).shape


def test_open_activations_pass_everything() -> None:
    x, model = images(2, 3), Beside(ACTIVATIONS)
    for found in model.results(replay_open(model, x, statistics="running"), [x] * len(ACTIVATIONS)):
        assert_equal(found, x)


def test_a_product_that_is_open_adds_its_branches() -> None:
    x = images(2, 4).abs()
    out = replay_open(Between(lambda y: y[:, :2] * y[:, 2:]), x, statistics="running", per_sample="one")
    assert_equal(out, x[:, :2] + x[:, 2:])


def test_open_attention_averages_over_what_its_products_contract() -> None:
    """Else a query, which reaches every unit of the values, would count as many times as there are."""
    parts = {name: nn.Linear(3, 4, bias=False) for name in ("queries", "keys", "values")}
    model = Wired(lambda net, x: (net.queries(x) @ net.keys(x).mT).softmax(-1) @ net.values(x), **parts).double()
    x = images(2, 5, 3).abs().double()
    q, k, v = (x @ parts[name].weight.detach().abs().T for name in ("queries", "keys", "values"))
    similar = (q[:, :, None] + k[:, None]).mean(-1)
    expected = (similar[:, :, :, None] + v[:, None]).mean(2)
    found = replay_open(model, x, statistics="running", coefficients="absolute", per_sample="one")
    assert_equal(found, expected)


# -- scores ------------------------------------------------------------------------------------------------------------


def test_weights_that_feed_a_gate_have_the_score_of_its_squared_jacobian() -> None:
    layers = {"value": nn.Linear(3, 4), "gate": nn.Linear(3, 4), "head": nn.Linear(4, 2)}
    model = Wired(lambda net, x: net.head(net.value(x) * net.gate(x).sigmoid()), **layers).double()
    x = images(5, 3)
    scores = pathex.score(model, "px", x)
    value, gate = model.value(x), model.gate(x).sigmoid()
    head = model.head.weight.square()
    back = head.sum(0) * value.square() * (gate * (1 - gate)).square()  # (N, 4)
    expected = torch.einsum("no,ni->oi", back, x.square()) * model.gate.weight.square()
    assert_equal(scores["gate.weight"], expected)
    back = head.sum(0) * gate.square()
    assert_equal(scores["value.weight"], torch.einsum("no,ni->oi", back, x.square()) * model.value.weight.square())
