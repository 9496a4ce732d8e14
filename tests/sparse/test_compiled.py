"""Compiled networks compute what their networks compute, in float32, for any number of images and threads.

Kernels in registers of another width than this processor's, which LLVM then splits; kernels from the disk.
"""

import copy
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch import nn

import pathex
import small_timm
from brute_force.cases import CASES, Beside, Branches, Wired, build
from brute_force.planes import convolved, largest
from pathex.errors import InvalidInput, PathexError, UnknownName, UnsupportedOperation
from pathex.sparse import Choice
from refusals import refused
from snapshots import unchanged

KINDS = [
    {"stride": stride, "dilation": dilation, "groups": groups, "padding": padding}
    for stride, dilation, groups, padding in itertools.product((1, 2, 3), (1, 2), (1, 2, 4), (0, 1, "same"))
    if padding != "same" or stride == 1
]


def random_network(model, density):
    """Random weights of which some are kept, and random statistics."""
    with torch.no_grad():
        for entry in model.parameters():
            entry.copy_(torch.randn(entry.shape) * (torch.rand(entry.shape) < density if entry.ndim > 1 else 0.5))
        for name, entry in model.named_buffers():
            if "running" in name:
                entry.copy_(torch.rand(entry.shape) + 0.5)
    return model.float().eval()


def assert_computes(compiled, model, x):
    """Off by at most twice what torch in float32 is off, or by two units of the last place of the largest output."""
    with torch.no_grad():
        single = model(x)
        exact = model.double()(x.double())
        model.float()
    error, own = ((y - exact).abs().max().item() for y in (compiled(x), single))
    assert error <= 2 * own + 2 * torch.finfo(torch.float32).eps * exact.abs().max().item()


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, (2, 3)])
def test_convolutions_of_any_kind(kernel):
    layers = {str(i): nn.Conv2d(4, 8, kernel, bias=i % 2 == 0, **kind) for i, kind in enumerate(KINDS)}
    model = random_network(Beside(layers), 0.3)
    x = torch.randn(17, 4, 15, 17)
    for threads in (1, 2):
        compiled = pathex.compile(model, example_input=x, threads=threads, choice="sparse")
        for count in (1, 3, 16, 17):
            assert_computes(compiled, model, x[:count])


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_against_loops_over_pixels(density):
    first = nn.Conv2d(2, 4, 3, stride=(1, 2), padding=(1, 2), dilation=(2, 1), groups=2)
    model = random_network(nn.Sequential(first, nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 3, (1, 2))), density)
    x = torch.randn(9, 2, 6, 7)
    with torch.no_grad():
        forms = [model[:stop](x).shape[2:] for stop in (1, 2, 3)]
        y = convolved(x.double(), model[0], forms[0])
        y = convolved(largest(y, model[1], forms[1]), model[2], forms[2])
    compiled = pathex.compile(model, example_input=x, threads=1, choice="sparse")
    torch.testing.assert_close(compiled(x), y.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled(x[:1]), y[:1].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("density", [0.0, 0.002, 0.006])
def test_attention_by_the_features_that_vary(density):
    """Biases make queries, keys and values constant that no kept weight reaches."""
    how = {"img_size": 16, "patch_size": 4, "embed_dim": 96, "depth": 3, "num_heads": 2, "num_classes": 5}
    model = random_network(timm.models.VisionTransformer(**how), density)
    x = torch.randn(5, 3, 16, 16)
    compiled = pathex.compile(model, example_input=x, threads=1, choice="dense")
    assert len(compiled._reading.attention) == 3
    for count in (1, 5):
        assert_computes(compiled, model, x[:count])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("choice", ["sparse", "dense", "channels-last"])
def test_small_networks(name, choice):
    model, x = build(name, seed=1, images=11)
    model, x = model.float().eval(), x.float()
    compiled = pathex.compile(model, example_input=x, threads=1, choice=choice)
    for count in (1, 3, 11):
        assert_computes(compiled, model, x[:count])


@pytest.mark.parametrize("stride", [1, 2])
def test_wide_layers_are_summed_in_blocks_of_channels(stride):
    convolution = nn.Conv2d(96, 10, 3, stride, 1)
    model = random_network(nn.Sequential(convolution, Branches(nn.Conv2d(10, 10, 1), nn.Identity()), nn.ReLU()), 0.4)
    x = torch.randn(9, 96, 20, 20)
    compiled = pathex.compile(model, example_input=x, threads=1, choice="sparse")
    assert_computes(compiled, model, x)
    assert_computes(compiled, model, x[:1])


def residual(channels=8):
    """Blocks with sums, bounds, pools, and what only torch computes, between convolutions."""

    def unit(inputs, outputs, kernel=3, stride=1, groups=1):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs))

    body = nn.Sequential(unit(channels, channels), nn.ReLU6(), unit(channels, channels, groups=channels))
    wide = Branches(unit(channels, 16, stride=2), unit(channels, 16, 1, 2))
    joined = Branches(unit(16, 4, 5), nn.Sequential(nn.SiLU(), unit(16, 4, 1)), nn.MaxPool2d(3, 1, 1), join="cat")
    stem = [unit(3, channels, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Branches(body, nn.Identity()), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)]
    return nn.Sequential(*stem, wide, nn.Hardtanh(-0.5, 0.7), joined, *head)


def sequence():
    """Tokens first, images second; activations that keep zero between padded layers."""

    def form(net, x):
        x = nn.functional.hardswish(net.second(nn.functional.silu(net.first(x))))
        tokens = x.flatten(2).permute(2, 0, 1)
        return net.head(nn.functional.gelu(net.inner(tokens)).roll(1, 0)).transpose(0, 1).flatten(1)

    convolutions = {"first": nn.Conv2d(3, 6, 3, padding=1), "second": nn.Conv2d(6, 4, 3, 2, padding=1)}
    return Wired(form, **convolutions, inner=nn.Linear(4, 7), head=nn.Linear(7, 5))


@pytest.mark.parametrize(("make", "size"), [(residual, (37, 41)), (small_timm.vit, (16, 16)), (sequence, (20, 24))])
@pytest.mark.parametrize("threads", [1, 2])
def test_residual_networks_and_tokens(make, size, threads):
    model = random_network(make(), 0.4)
    x = torch.randn(17, 3, *size)
    compiled = pathex.compile(model, example_input=x, threads=threads, choice="sparse")
    for count in (1, 3, 6, 16, 17):  # alone, one by one, filled up, on the lanes, and one more
        assert_computes(compiled, model, x[:count])


def test_what_is_chosen_by_measuring_and_kept_gives_the_same_bits():
    model = random_network(residual(), 0.3)
    x = torch.randn(9, 3, 24, 24)
    compiled = pathex.compile(model, example_input=x, threads=1)
    assert_computes(compiled, model, x)
    again = pathex.compile(model, example_input=x, threads=1, choice=compiled.choice)
    for count in (1, 9):
        assert torch.equal(compiled(x[:count]), again(x[:count]))
        assert torch.equal(compiled(x[:count]), compiled(x[:count]))
    assert str(compiled).count("\n") > 8


def test_a_mask_is_what_is_kept_and_the_network_stays():
    model = random_network(residual(), 1.0)
    mask = pathex.Mask({n: torch.rand(p.shape) < 0.2 for n, p in model.named_parameters() if p.ndim > 1})
    x = torch.randn(2, 3, 24, 24)
    with unchanged(model):
        compiled = pathex.compile(model, mask, x, threads=1, choice="sparse")
    assert_computes(compiled, pathex.make_permanent(model, mask), x)


def test_copies_compute_alone():
    model, seen = random_network(residual(), 0.3), []
    x = torch.randn(9, 3, 24, 24)
    compiled = pathex.compile(model, example_input=x, threads=2, choice="sparse")
    compiled.register_forward_hook(lambda *_: seen.append(1))
    expected = compiled(x)
    other = copy.deepcopy(nn.Sequential(compiled))
    programs = [each for idle in compiled._idle.values() for each in idle]
    for array in (array for program in programs for array in program._arrays):
        array[:] = 0
    assert torch.equal(other(x), expected) and len(seen) == 2
    assert other[0].choice == compiled.choice


@pytest.mark.parametrize("threads", [1, 2])
def test_several_python_threads_at_once(threads):
    model = random_network(residual(), 0.3)
    images = [torch.randn(count, 3, 24, 24) for count in (1, 9, 3, 8)]
    compiled = pathex.compile(model, example_input=images[1], threads=threads, choice="sparse")
    wanted = [compiled(x) for x in images]
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda x: [compiled(x) for _ in range(20)], images))
    assert all(torch.equal(one, expected) for each, expected in zip(found, wanted, strict=True) for one in each)


def test_refusals(monkeypatch):
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.ones(1, 1, 5, 5)
    compiled = pathex.compile(model, example_input=x, threads=1, choice="sparse")
    with pytest.raises(InvalidInput, match="inference"):
        compiled.train()
    assert compiled.eval() is compiled
    for wrong in (x[0], x.double(), x[:, :, :4], x[:0]):
        with pytest.raises(InvalidInput, match="images must be"):
            compiled(wrong)
    with pytest.raises(InvalidInput, match="example_input"):
        pathex.compile(model)
    with pytest.raises(UnknownName, match="channels-last, dense, sparse"):
        pathex.compile(model, example_input=x, choice="fast")
    with pytest.raises(PathexError, match="threads"):
        pathex.compile(model, example_input=x, threads=0)
    for choice in ({"0": "sparse"}, 3, ["sparse"]):
        with refused(f"choice is {type(choice).__name__}; allowed: .*channels-last"):
            pathex.compile(model, example_input=x, choice=choice)
    for ways in ({"1": "sparse"}, {}, {0: "sparse", "0": "dense"}, "sparse", None, 3):
        with refused("choice must give sparse, dense, channels-last by name for each layer"):
            pathex.compile(model, example_input=x, choice=Choice(ways))
    for way in (3, ["sparse"], "fast"):
        with refused("way to compute a layer.*channels-last, dense, sparse"):
            pathex.compile(model, example_input=x, choice=Choice({"0": way}))
    with refused("filled_from"):
        pathex.compile(model, example_input=x, choice=Choice({"0": "sparse"}, filled_from=None))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InvalidInput, match=r"pathex\[sparse\]"):
        pathex.compile(model, example_input=x)


MEETING = {
    "norm without statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "mean of all images": Wired(lambda net, x: (x - x.mean(0, keepdim=True)).relu()),
    "largest of all": Wired(lambda net, x: x / x.amax()),
    "another order": Wired(lambda net, x: x.flip(0)),
}


@pytest.mark.parametrize("name", MEETING)
@pytest.mark.parametrize("choice", [None, "sparse", "dense"])
def test_networks_whose_images_meet_are_refused(name, choice):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), MEETING[name], nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)).eval()
    for count in (1, 20):
        with refused("depends on other images", UnsupportedOperation):
            pathex.compile(model, example_input=torch.randn(count, 3, 8, 8), threads=1, choice=choice)


def test_a_network_that_takes_numbers_only_is_not_thought_to_meet():
    table = Wired(lambda net, x: net.of((x.clamp(0, 1) * 9).long()).permute(0, 3, 1, 2), of=nn.Embedding(10, 3))
    model = Wired(lambda net, x: net.layer(net.table(x[:, 0])), table=table, layer=nn.Conv2d(3, 4, 3)).eval()
    x = torch.rand(3, 3, 6, 6)
    compiled = pathex.compile(model, example_input=x, threads=1)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


def test_means_in_another_precision():
    model = Wired(lambda net, x: net.layer(x).mean((2, 3), dtype=torch.float64), layer=nn.Conv2d(3, 4, 3)).eval()
    x = torch.randn(2, 3, 8, 8)
    compiled = pathex.compile(model, example_input=x, threads=1, choice="sparse")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("images", [1, 16])
def test_images_that_are_too_large_for_the_offsets_of_kernels(images, monkeypatch):
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, 2)).eval(), torch.randn(images, 3, 9, 9)
    expected = pathex.compile(model, example_input=x, threads=1, choice="dense")(x)
    for farthest, name in ((3 * 11 * 11 * images, "1"), (11 * 11 * images, "0")):
        monkeypatch.setattr("pathex.sparse.planes._FARTHEST", farthest)
        compiled = pathex.compile(model, example_input=x, threads=1, choice="sparse")
        with refused(f"kernels of '{name}': choose 'dense'", UnsupportedOperation):
            compiled(x)
    assert torch.equal(pathex.compile(model, example_input=x, threads=1, choice="dense")(x), expected)


def test_weights_that_are_not_numbers_are_computed_with():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)).eval()
    model[2].weight.data[0, 0] = torch.nan
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(pathex.compile(model, example_input=x, threads=1, choice="sparse")(x).isnan(), model(x).isnan())


PROGRAM = """
import llvmlite.binding
found = llvmlite.binding.get_host_cpu_features
llvmlite.binding.get_host_cpu_features = lambda: {{"avx512f": {wide}}}
from pathex.sparse import llvm
llvmlite.binding.get_host_cpu_features = found
import torch
from torch import nn
import pathex
from pathex.sparse import kernels
assert kernels.LANES == {lanes}
model = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1), nn.MaxPool2d(2)).eval()
x = torch.randn({lanes} + 1, 3, 31, 33)
compiled = pathex.compile(model, example_input=x, threads=1, choice="sparse")
torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
torch.testing.assert_close(compiled(x[:1]), model(x[:1]), rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("wide", "lanes"), [(True, 16), (False, 4)])
def test_registers_of_another_width(wide, lanes, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", PROGRAM.format(wide=wide, lanes=lanes)], check=True, timeout=300)


@pytest.mark.slow
def test_kernels_are_compiled_once_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    code = "from pathex.sparse import kernels; print(sum(kernels.run.stats.cache_hits.values()))"
    call = [sys.executable, "-c", code]
    first, second = (subprocess.run(call, check=True, timeout=300, capture_output=True, text=True) for _ in range(2))
    assert "compiles its kernels" in first.stderr and first.stdout.strip() == "0"
    assert not second.stderr and second.stdout.strip() == "1"


@pytest.mark.parametrize("make", [pathex.compile, pathex.sparse.convert])
def test_several_inputs_are_refused_by_what_they_are(make):
    model = nn.Conv2d(3, 4, 3)
    mask = pathex.Mask({"weight": torch.ones(4, 3, 3, 3, dtype=torch.bool)})
    images = torch.zeros(2, 3, 8, 8)
    wrong = (
        ((images, images), "tuple"),
        ({"x": images}, "dict"),
        (images.long(), "Tensor"),
        (torch.tensor(1.0), "Tensor"),
    )
    for given, kind in wrong:
        with pytest.raises(InvalidInput, match=f"example_input is {kind}; allowed: .* for a network of one input"):
            make(model, mask, given)
