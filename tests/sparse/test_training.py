"""Sparse layers give the outputs and gradients of torch, whatever their geometry, mask and number of images."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brute_force.planes import convolved
from dense_twin import assert_near, gradients, pair, random_state, twin
from pathex import Mask
from pathex.errors import InvalidInput, MaskMismatch, PathexError, UnknownName, UnsupportedOperation
from pathex.sparse import convert, plan, restore
from refusals import refused
from snapshots import unchanged

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
MASKS = ("all", "none", "one", "half", "few", "empty rows", "dense rows", "empty inputs")


def drawn_mask(shape, kind, seed):
    """Which weights of a layer are kept."""
    draws = torch.Generator().manual_seed(seed)
    uniform = torch.rand(shape, generator=draws)
    if kind in ("all", "none"):
        return torch.full(shape, kind == "all")
    if kind == "one":
        return uniform == uniform.max()
    if kind in ("half", "few"):
        return uniform < {"half": 0.5, "few": 0.1}[kind]
    axis = 1 if kind == "empty inputs" else 0
    chosen = torch.rand(shape[axis], generator=draws) < 0.5
    lines = chosen.view(-1, *[1] * (len(shape) - 1 - axis))
    return (uniform < 0.3) | lines if kind == "dense rows" else (uniform < 0.5) & lines


@st.composite
def convolutions(draw):
    """A convolution, images for which it has an output, and its mask."""
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    inputs, outputs = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    if draw(st.booleans()) and groups > 1:
        inputs = groups
    pairs = st.tuples
    kernel = draw(pairs(st.integers(1, 4), st.integers(1, 5)))
    dilation = draw(pairs(st.integers(1, 2), st.integers(1, 3)))
    stride = draw(pairs(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(pairs(st.integers(0, 3), st.integers(0, 2)) | st.sampled_from(("same", "valid")))
    stride = (1, 1) if padding == "same" else stride
    pads = padding if isinstance(padding, tuple) else (0, 0)
    sizes = [
        max(1, draw(st.integers(1, 9)), (k - 1) * d + 1 - 2 * p if padding != "same" else 1)
        for k, d, p in zip(kernel, dilation, pads, strict=True)
    ]
    bias = draw(st.booleans())
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias)
    images = draw(st.sampled_from((1, 2, 3, 15, 16, 17, 33)))
    return layer, (images, inputs, *sizes), draw(st.sampled_from(MASKS)), draw(st.integers(0, 10**6))


def assert_layer(model, name, shape, kind, seed, dtype, threads=1):
    """Output and all gradients of a network with one masked layer, for random images and a random gradient."""
    torch.manual_seed(seed)
    model = model.to(dtype)
    with torch.no_grad():
        for entry in model.parameters():
            entry.copy_(torch.randn(entry.shape))
    layer = model.get_submodule(name)
    mask = Mask({f"{name}.weight": drawn_mask(layer.weight.shape, kind, seed)})
    x = torch.randn(shape, dtype=dtype)
    net, dense = pair(model, mask, x, threads)
    results = []
    for each, type_ in ((net, dtype), (dense.double(), torch.float64)):
        read = x.detach().to(type_).requires_grad_()
        y = each(read)
        torch.manual_seed(seed)
        y.backward(torch.randn(y.shape, dtype=dtype).to(type_))
        results.append({"y": y, "x": read.grad, **gradients(each, mask)})
    found, expected = results
    assert found["y"].dtype == dtype
    for name, value in expected.items():
        assert_near(found[name], value, TOLERANCE[dtype], name, floor=1.0)


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.sampled_from(sorted(TOLERANCE, key=str)), st.integers(1, 3))
def test_convolutions_have_the_gradients_of_torch(drawn, dtype, threads):
    layer, *rest = drawn
    assert_layer(nn.Sequential(layer), "0", *rest, dtype, threads)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 5), max_size=2), st.integers(1, 20), st.integers(1, 20), st.integers(1, 40), st.booleans(),
    st.sampled_from(MASKS), st.integers(0, 10**6), st.sampled_from(sorted(TOLERANCE, key=str)), st.integers(1, 2),
)  # fmt: skip
def test_linear_layers_have_the_gradients_of_torch(inner, inputs, outputs, images, bias, kind, seed, dtype, threads):
    """Of vectors, tokens, and what has more dimensions."""
    layer = nn.Linear(inputs, outputs, bias)
    assert_layer(nn.Sequential(layer), "0", (images, *inner, inputs), kind, seed, dtype, threads)


class Between(nn.Module):
    """A layer between others, all in the same kernels: normalised before and behind, rectified, pooled."""

    def __init__(self, layer, pool):
        super().__init__()
        self.first = nn.Conv2d(layer.in_channels, layer.in_channels, 1)
        self.norm = nn.BatchNorm2d(layer.in_channels)
        self.layer = layer
        self.after = nn.BatchNorm2d(layer.out_channels)
        self.last = nn.Conv2d(layer.out_channels, 3, 1, bias=False)
        self.pool = pool

    def forward(self, x):
        x = self.after(self.layer(self.norm(self.first(x)).relu())).relu()
        return self.last(self.pool(x))


@settings(max_examples=30, deadline=None)
@given(convolutions(), st.integers(0, 1), st.booleans(), st.integers(1, 2))
def test_norms_and_pools_around_convolutions_have_the_gradients_of_torch(drawn, pooled, training, threads):
    layer, shape, kind, seed = drawn
    torch.manual_seed(seed)
    pool = nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 1)) if pooled and shape[3] > 12 else nn.MaxPool2d(3, 2, 1)
    model = random_state(Between(layer, pool if pooled else nn.Identity())).double().train(training)
    mask = Mask({
        "first.weight": drawn_mask(model.first.weight.shape, "half", seed),
        "layer.weight": drawn_mask(layer.weight.shape, kind, seed),
        "last.weight": drawn_mask(model.last.weight.shape, "half", seed + 1),
    })
    x = torch.randn(max(2, shape[0]), *shape[1:], dtype=torch.float64)
    net, dense = pair(model, mask, x, threads)
    results = []
    for each in (net, dense):
        read = x.clone().requires_grad_()
        y = each(read)
        y.backward(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).sin().view(y.shape))
        buffers = dict(each.named_buffers())
        statistics = {name: buffers[name] for name in ("norm.running_mean", "norm.running_var", "after.running_var")}
        results.append({"y": y, "x": read.grad, **gradients(each, mask), **statistics})
    for name, value in results[1].items():
        # A channel whose values are all the same has a variance of rounding, which torch divides by too.
        assert_near(results[0][name], value, 1e-9, name, floor=1.0)
