"""Operations on one tensor, by tables: name to a module or function."""

import itertools
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from brute_force.cases import Wired
from paths.oracle import draws, images

SIZES = (7, 6, 5)
CONV, TRANSPOSED = (nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MAX_POOL, AVERAGE = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE_MAX = nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d
ADAPTIVE_AVERAGE = nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d


def by_rank(entries, make):
    """For one to three spatial dimensions a table of the options that are for them."""
    return {rank: {str(o): make(rank, o) for own, o in entries if own in (rank, None)} for rank in (1, 2, 3)}


# Options, and the rank that they are for; None: all.
CONVOLUTIONS = by_rank(
    [
        *((None, options) for options in ({}, {"groups": 2, "stride": 2}, {"dilation": 2})),
        *((2, {"padding": 1, "padding_mode": mode}) for mode in ("zeros", "reflect", "replicate", "circular")),
        *((rank, {"padding": "same", "dilation": 2}) for rank in (1, 2)),
        (2, {"padding": (0, 2), "stride": (3, 1), "bias": False}),
        (1, {"padding": "same", "padding_mode": "circular"}),
    ],
    lambda rank, options: draws(CONV[rank - 1](4, 2, 3, **options)),
)
TRANSPOSED_CONVOLUTIONS = by_rank(
    [
        *((None, options) for options in ({}, {"groups": 2, "stride": 2, "output_padding": 1})),
        (2, {"padding": 1, "dilation": 2, "bias": False}),
        (2, {"padding": (1, 0), "stride": (2, 3), "output_padding": (1, 2)}),
    ],
    lambda rank, options: draws(TRANSPOSED[rank - 1](4, 2, 3, **options)),
)
GATES = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky": nn.LeakyReLU(0.2),
    "prelu": nn.PReLU(init=0.3),
    "prelu-by-channel": draws(nn.PReLU(4)),
    "hardtanh": nn.Hardtanh(-0.5, 0.8),
    "rrelu": nn.RReLU(),
    "threshold": nn.Threshold(0.3, 2.0),
}
MAX_POOLS = by_rank(
    [
        (None, {"kernel_size": 2}),
        (None, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
        (2, {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
        (2, {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)}),
        (2, {"kernel_size": 2, "stride": 3, "ceil_mode": True}),
        (1, {"kernel_size": 2, "dilation": 3, "padding": 1, "stride": 1}),
        (2, {"kernel_size": 1, "stride": 2}),
    ],
    lambda rank, options: MAX_POOL[rank - 1](**options),
)
_SIDES = [(1, 3), (2, 1), (2, (3, 4)), (2, (None, 2)), (3, (3, 1, 2)), (3, 2)]
ADAPTIVE_MAX_POOLS = by_rank(_SIDES, lambda rank, size: ADAPTIVE_MAX[rank - 1](size))
ADAPTIVE_AVERAGES = by_rank(_SIDES, lambda rank, size: ADAPTIVE_AVERAGE[rank - 1](size))
AVERAGES = by_rank(
    [
        (None, {"kernel_size": 2}),
        *(
            (None, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": ceil, "count_include_pad": count})
            for ceil, count in itertools.product((False, True), (False, True))
        ),
        (2, {"kernel_size": (2, 3), "stride": (1, 2), "divisor_override": 4}),
        (3, {"kernel_size": 2, "padding": 1, "divisor_override": 3}),
        (2, {"kernel_size": 2, "stride": 3, "ceil_mode": True, "count_include_pad": False}),
    ],
    lambda rank, options: AVERAGE[rank - 1](**options),
)
INTERPOLATIONS = by_rank(
    [
        *((None, {"size": 9, "mode": mode}) for mode in ("nearest", "nearest-exact", "area")),
        *((None, {"scale_factor": 1.7, "mode": mode}) for mode in ("nearest", "area")),
        *((1, {"size": n, "mode": "linear", "align_corners": c}) for n in (4, 11) for c in (False, True)),
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
    ],
    lambda rank, options: partial(F.interpolate, **options),
)
MOVES = {
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

ACTIVATIONS = {
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


def _shifted_choice(x):
    index = x.argmax(1, keepdim=True)
    index += 1
    index %= x.shape[1]
    return x.gather(1, index)


def _inverted(x):
    mask = x > 0
    mask.logical_not_()
    return x * mask.to(x.dtype)


FUNCTIONS = {
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
    "written where it is negative": lambda x: x.index_put((x < 0,), torch.tensor(3.0, dtype=x.dtype)),
    "maximum of a number": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "a choice changed in place": _shifted_choice,
    "a comparison changed in place": _inverted,
}


HALVES = {
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


def _matrix(like):
    return torch.arange(1.0, 17.0, dtype=like.dtype).view(4, 4)


def _of_halves(form):
    return lambda x: form(*x.chunk(2, 1))


BY_A_MATRIX = {
    "matmul": lambda x: x @ _matrix(x),
    "addmm": lambda x: torch.addmm(torch.ones_like(x), x, _matrix(x)),
    "einsum": lambda x: torch.einsum("nc,cd->nd", x, _matrix(x)),
    "mv": lambda x: torch.mv(_matrix(x), x[0]),
}
SOFTMAX = {
    "softmax of images": lambda x: x.softmax(0),
    "softmax": lambda x: x.softmax(1),
    "softmax of the last": lambda x: x.softmax(-1),
    "log softmax of images": lambda x: x.log_softmax(0),
    "log softmax": lambda x: x.log_softmax(1),
}


GATED = {
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
    "argmax": lambda x: x * F.one_hot(x.argmax(-1), 3).to(x.dtype),
}


def _attended(x, **options):
    q, k, v = x.chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v, **options)


MASK = torch.tensor([[True, False, True], [True, True, False], [True, True, True]])
BLIND = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
ATTENTION = {
    "plain": _attended,
    "scaled": lambda x: _attended(x, scale=0.3),
    "masked": lambda x: _attended(x, attn_mask=MASK),
    "a query that sees no key": lambda x: _attended(x, attn_mask=BLIND),
    "biased": lambda x: _attended(x, attn_mask=torch.arange(9.0, dtype=x.dtype).view(3, 3)),
    "causal": lambda x: _attended(x, is_causal=True),
    "grouped": lambda x: F.scaled_dot_product_attention(x[..., :2], x[:, :1, :, 2:4], x[:, :1, :, 4:], enable_gqa=True),
}


def _attends(net, x):
    out, weights = net.heads(x, x, x, need_weights=net.needed)
    return out if weights is None else out + weights.mean()


def _masked(net, x):
    padding = torch.tensor([[False, False, True], [False, True, False]])
    each = torch.zeros(4, 3, 3, dtype=x.dtype)
    each[0, 1, 2] = -1.0
    return net.heads(x, x, x, key_padding_mask=padding, attn_mask=each)[0]


def _unnormalised(net, x):
    x = x + net.layer._sa_block(x, None, None)
    return x + net.layer._ff_block(x)


HEADS = {
    f"{kind} {needed}": draws(Wired(_attends, heads=nn.MultiheadAttention(4, 2, **kind), needed=needed))
    for kind in ({}, {"batch_first": True}, {"bias": False}, {"kdim": 4, "vdim": 4})
    for needed in (False, True)
}
LAYERS = {
    "masked": draws(Wired(_masked, heads=nn.MultiheadAttention(4, 2, batch_first=True))),
    "layer": draws(Wired(_unnormalised, layer=nn.TransformerEncoderLayer(4, 2, 6, 0.1, F.gelu, batch_first=True))),
}


def _spatial(rank, channels=4):
    return images(2, channels, *SIZES[:rank])


# Operations, images, and whether no entry of the Jacobian collects two terms, so that its square is exact.
TABLES = {
    **{f"gates of {len(s)}": (GATES, images(*s, scale=4.0), True) for s in ((3, 4), (2, 4, 3), (2, 4, 3, 2))},
    **{f"max pools {rank}": (table, _spatial(rank, 2), True) for rank, table in MAX_POOLS.items()},
    **{f"adaptive max pools {rank}": (table, _spatial(rank, 2), True) for rank, table in ADAPTIVE_MAX_POOLS.items()},
    **{f"adaptive averages {rank}": (table, _spatial(rank, 2), True) for rank, table in ADAPTIVE_AVERAGES.items()},
    **{f"averages {rank}": (table, _spatial(rank, 2), True) for rank, table in AVERAGES.items()},
    **{f"interpolations {rank}": (table, _spatial(rank, 1), True) for rank, table in INTERPOLATIONS.items()},
    "pools without batch dimension": (
        {str(pool): pool for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2), ADAPTIVE_AVERAGE[1](2), ADAPTIVE_MAX[1](3))},
        images(2, 7, 6),
        True,
    ),
    "moves": (MOVES, images(2, 4, 6, 5), True),
    "elementwise": ({**ACTIVATIONS, **FUNCTIONS}, images(3, 5, scale=2.0), True),
    "products of two branches": ({name: _of_halves(form) for name, form in HALVES.items()}, images(3, 8), True),
    "a product of three": ({"": lambda x: torch.einsum("nc,nc,nc->n", *x.chunk(3, 1)) / 2}, images(3, 12), False),
    "products with a matrix": (BY_A_MATRIX, images(4, 4), True),
    "softmax": (SOFTMAX, images(3, 4, scale=3.0), True),
    "gated": (GATED, images(2, 4, 3), False),
    "attention": (ATTENTION, images(2, 2, 3, 6), False),
    "heads": (HEADS, images(3, 2, 4), False),
    "layers": (LAYERS, images(2, 3, 4), False),
}
# Layers, and images: of squared weights paths have squared coefficients, one for each weight and position.
WEIGHED = {
    **{f"convolutions {rank}": (table, _spatial(rank)) for rank, table in CONVOLUTIONS.items()},
    **{f"transposed {r}": (table, images(2, 4, *(3, 2, 2)[:r])) for r, table in TRANSPOSED_CONVOLUTIONS.items()},
    **{f"linear {shape}": ({"": draws(nn.Linear(4, 3))}, images(*shape)) for shape in ((2, 4), (2, 3, 4))},
}
