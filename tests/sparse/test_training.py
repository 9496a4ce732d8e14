"""Sparse layers give the outputs and gradients of torch, whatever their geometry, mask and number of images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brute_force.planes import convolved
from dense_twin import assert_near, gradients, pair, random_state, twin
from pathex import Mask
from pathex.errors import MaskMismatch, PathexError, UnknownName, UnsupportedOperation
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
    for each, value in expected.items():
        assert_near(found[each], value, TOLERANCE[dtype], each, floor=1.0)


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
    wide = shape[3] > 12 and layer(torch.zeros(1, *shape[1:])).shape[3] > 1
    pool = nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 1)) if pooled and wide else nn.MaxPool2d(3, 2, 1)
    model = random_state(Between(layer, pool if pooled else nn.Identity())).double().train(training)
    mask = Mask(
        {
            "first.weight": drawn_mask(model.first.weight.shape, "half", seed),
            "layer.weight": drawn_mask(layer.weight.shape, kind, seed),
            "last.weight": drawn_mask(model.last.weight.shape, "half", seed + 1),
        }
    )
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
        assert_near(results[0][name], value, 1e-8, name, floor=1.0)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_against_loops_over_pixels(density):
    layer = nn.Conv2d(4, 6, (2, 3), stride=(1, 2), padding=(1, 2), dilation=(2, 1), groups=2).double()
    x = torch.randn(3, 4, 6, 7, dtype=torch.float64)
    mask = Mask({"0.weight": torch.rand(layer.weight.shape) < density})
    net = convert(nn.Sequential(layer), mask, x, threads=1, choice="sparse")
    y = net(x)
    layer.weight.data.mul_(mask["0.weight"])
    assert_near(y, convolved(x, layer, y.shape[2:]), 1e-10)
    # Central differences of a form of second degree are exact but for rounding.
    way = torch.randn(y.shape, dtype=torch.float64)
    grad = torch.autograd.grad((y * way).sum(), net[0].weight)[0]
    for place, index in enumerate(mask["0.weight"].nonzero().tolist()[:5]):
        ends = []
        for sign in (1, -1):
            layer.weight.data[tuple(index)] += sign
            ends.append((convolved(x, layer, y.shape[2:]) * way).sum())
            layer.weight.data[tuple(index)] -= sign
        assert_near(grad[place], (ends[0] - ends[1]) / 2, 1e-9, floor=1.0)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_are_those_of_torch_about_a_mean_that_is_far_from_zero(momentum):
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=momentum), nn.ReLU(), nn.Conv2d(3, 2, 1)]
    model = nn.Sequential(*layers)
    layers[0].bias.data.add_(100)
    mask = Mask({f"{i}.weight": torch.rand(layers[i].weight.shape) < 0.6 for i in (0, 3)})
    x = torch.randn(19, 2, 9, 8)
    net, dense = pair(model, mask, x)
    dense.double()
    for step in range(3):
        assert_near(net(x + step), dense(x.double() + step), 1e-3)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert_near(getattr(net[1], name), getattr(dense[1], name), 1e-5)


def plain():
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2))


def mask_of(model):
    return Mask({n: torch.rand(p.shape) < 0.5 for n, p in model.named_parameters() if p.ndim > 1})


def test_the_network_stays():
    model, x = plain(), torch.randn(3, 2, 6, 6)
    mask = mask_of(model)
    with unchanged(model):
        net = convert(model, mask, x, threads=1)
    assert {name: p.shape for name, p in net.state_dict().items()} == {
        n: p.shape for n, p in model.state_dict().items()
    }
    trained = sum(p.numel() for name, p in net.named_parameters() if name in mask)
    assert trained == mask.kept and "kept=" in repr(net)
    assert plan(model) == {} and [*plan(net)] == ["0", "3"]
    with unchanged(net):
        restore(net)


@pytest.mark.parametrize("wrong", [
    torch.randn(3, 3, 6, 6), torch.randn(2, 6, 6), torch.randn(3, 2, 6), torch.randn(3, 2, 6, 6).double(),
    torch.ones(3, 2, 6, 6, dtype=torch.int64), torch.randn(3, 2, 1, 1)[:, :, :, :0],
    torch.randn(0, 2, 6, 6),
])  # fmt: skip
def test_images_that_do_not_fit_are_refused(wrong):
    model = plain()
    net = convert(model, mask_of(model), torch.randn(3, 2, 6, 6), threads=1, choice="sparse")
    with pytest.raises((RuntimeError, ValueError)):
        net(wrong)
    model = nn.Sequential(nn.Linear(4, 3))
    net = convert(model, mask_of(model), torch.randn(3, 4), threads=1, choice="sparse")
    with pytest.raises((RuntimeError, ValueError)):
        net(wrong)


def test_one_value_for_a_channel_is_refused_as_in_torch():
    model, x = plain(), torch.randn(1, 2, 1, 1)
    model[3] = nn.Conv2d(3, 4, 1)
    net = convert(model, mask_of(model), x, threads=1, choice="sparse")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(x)
    assert net.eval()(x).shape == (1, 4, 1, 1)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def standardised():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 1)))


@pytest.mark.parametrize("layer", [
    nn.Conv1d(2, 3, 1), nn.ConvTranspose2d(2, 3, 1), nn.Conv3d(2, 3, 1), nn.Embedding(4, 3),
    nn.MultiheadAttention(4, 2),
])  # fmt: skip
def test_other_layers_are_refused(layer):
    name = next(f"0.{n}" for n, p in layer.named_parameters() if p.ndim > 1)
    model = nn.Sequential(layer, nn.Flatten())
    mask = Mask({name: torch.ones(model.get_parameter(name).shape).bool()})
    with refused("trace|weight of a plain Conv2d or Linear", PathexError):
        convert(model, mask, torch.randn(3, 2, 4, 4), threads=1)


def test_refusals(monkeypatch):
    model, x = plain(), torch.randn(3, 2, 6, 6)
    mask = mask_of(model)

    def convert_it(model=model, mask=mask, x=x, **options):
        return convert(model, mask, x, **{"threads": 1, "choice": "sparse"} | options)

    with refused("0.weight", MaskMismatch):
        convert_it(mask=Mask({"0.weight": torch.ones(2, 2).bool()}))
    with refused("9.weight", MaskMismatch):
        convert_it(mask=Mask({"9.weight": torch.ones(2, 2).bool()}))
    with refused("plain Conv2d or Linear", UnsupportedOperation):
        convert_it(mask=Mask({"0.bias": torch.ones(3).bool()}))
    with refused("plain Conv2d or Linear", UnsupportedOperation):
        weight = "0.parametrizations.weight.original1"
        convert_it(standardised(), Mask({weight: torch.ones(3, 2, 1, 1).bool()}))
    with refused("a.weight.*b.weight", UnsupportedOperation):
        convert_it(Tied(), Mask({"a.weight": torch.ones(2, 2, 1, 1).bool()}))
    with refused("dense, sparse", UnknownName):
        convert_it(choice="fast")
    for choice in ({"0": "sparse"}, {"0": "sparse", "3": "dense", 4: "dense"}, {0: "sparse", "0": "sparse"}, {}):
        with refused("choice must give sparse, dense by name for each layer"):
            convert_it(choice=choice)
    for choice in (3, ["sparse"], False):
        with refused("choice must give sparse, dense by name"):
            convert_it(choice=choice)
    for way in (3, ["sparse"], ""):
        with refused("way to compute a layer.*dense, sparse", UnknownName):
            convert_it(choice={"0": way, "3": "dense"})
    for threads in (0, -1, 1.5):
        with refused("threads", PathexError):
            convert_it(threads=threads)
    with refused("CPU"):
        convert_it(plain().to("meta"))
    with refused("float32 or torch.float64"):
        convert_it(plain().bfloat16(), x=x.bfloat16())(x.bfloat16())
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with refused(r"pathex\[sparse\]"):
        convert_it()


@pytest.mark.parametrize("channels", [(36, 1), (1, 36)], ids=["forward", "backward"])
def test_images_that_are_too_large_for_the_offsets_of_kernels(channels):
    layer = nn.Conv2d(*channels, 3, padding=1)
    net = convert(
        layer, Mask({"weight": torch.ones(layer.weight.shape) > 0}), torch.randn(1, channels[0], 4, 4), 1, "sparse"
    )
    assert net.unit.shape(900, 900)
    with refused(f"{channels[0]} channels of 1000 x 1000: choose 'dense'", UnsupportedOperation):
        net.unit.shape(1000, 1000)


def test_layers_whose_images_are_too_large_are_dense(monkeypatch):
    monkeypatch.setattr("pathex.sparse.planes._FARTHEST", 8_000)
    model = nn.Sequential(nn.Conv2d(2, 9, 1), nn.Conv2d(9, 3, 3), nn.Conv2d(3, 2, 1))
    kept = {f"{i}.weight": torch.zeros_like(model[i].weight).bool() for i in range(3)}
    for entries in kept.values():
        entries[-1, -1, 0, 0] = True
    mask = Mask(kept)
    x = torch.randn(3, 2, 6, 6)
    net, dense = convert(model, mask, x, threads=1), twin(model, mask)
    assert plan(net) == {"0": "dense", "1": "dense", "2": "sparse"}
    assert_near(net(x), dense(x), 1e-5)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_that_is_not_zero(mode):
    """Such a layer is dense where the choice is measured."""
    model, x = (
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)).double(),
        torch.randn(3, 2, 6, 6).double(),
    )
    mask = mask_of(model)
    net, dense = convert(model, mask, x, threads=1), twin(model, mask)
    assert plan(net) == {"0": "dense"}
    assert_near(net(x), dense(x), 1e-10)
    with refused(f"'0'.*{mode}", UnsupportedOperation):
        convert(model, mask, x, threads=1, choice="sparse")
