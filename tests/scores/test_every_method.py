"""What holds for every method: delivery and layout play no part, everything stays as it was, and so on."""

import copy
import math
import re
from functools import partial

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import Wired, assert_close
from pathex.errors import InvalidInput, PathexWarning, UnknownName, UnsupportedOperation
from pathex.graph import trace
from pathex.paths import survey
from snapshots import assert_same, unchanged
from variants import CALIBRATED, LOSSES, RUN_THE_NETWORK, SCORERS, VARIANTS

X, Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])
DELIVERIES = {
    "uneven batches": lambda x, y: list(zip(x.split(4), y.split(4), strict=True)),
    "one by one": lambda x, y: zip(x.split(1), y.split(1), strict=True),
    "backwards": lambda x, y: (x.flip(0), y.flip(0)),
    "channels last": lambda x, y: (x.contiguous(memory_format=torch.channels_last), y),
}


@pytest.mark.filterwarnings("ignore:.* of memory, more than")
@pytest.mark.parametrize("calibration", ["batch", "running"])
@pytest.mark.parametrize("variant", CALIBRATED)
def test_delivery_and_memory_play_no_part(variant, calibration, model, images):
    method, options = VARIANTS[variant]
    x, y = images[:6], torch.arange(6) % 3
    score = partial(pathex.score, model, method, calibration=calibration, **options)
    whole = score((x, y))
    data = [deliver(x, y) for deliver in DELIVERIES.values()] + [x] * (pathex.methods(method).needs != "labels")
    for delivered in data:
        found = score(delivered)
        assert all(torch.equal(found[name], entry) for name, entry in whole.items())
    for memory in ("50KB", 1):
        assert_close(score((x, y), memory=memory), whole)


@pytest.mark.parametrize("method", SCORERS)
def test_inside_no_grad_inference_mode_and_autocast(method, model, images):
    y = torch.arange(12) % 3
    expected = pathex.score(model, method, (images, y))
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            made = (images.clone(), y.clone())
            inside = pathex.score(model, method, made)
        for found in (inside, pathex.score(model, method, made)):
            assert all(torch.equal(found[name], score) for name, score in expected.items())


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
@pytest.mark.parametrize("method", ["px", "px-literal", "px-cvpr24", "synflow", "magnitude", *LOSSES])
def test_models_in_half_precision(method, dtype, model, images):
    model.to(dtype)
    x, y = images.to(dtype), torch.arange(12) % 3
    found = pathex.score(model, method, [(x, y)])
    expected = pathex.score(copy.deepcopy(model).float(), method, [(x.float(), y)])
    assert_close(found, expected, 1e-6 if method in LOSSES else 1e-4)
    assert next(model.parameters()).dtype == dtype


@pytest.mark.parametrize(("method", "options"), [("phew", {"walks": 200}), ("node-path", {})])
def test_coefficients_of_a_sample(method, options):
    model, x = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2)), torch.randn(3, 4)
    with pytest.raises(UnsupportedOperation, match="layer_norm"):
        pathex.score(model, method, x, **options)
    scores = pathex.score(model, method, x, per_sample="one", **options)
    assert all((entry >= 1).any() if method == "phew" else (entry > 0).all() for entry in scores.values())


@pytest.mark.parametrize(("method", "options"), [("phew", {"walks": 1000}), ("node-path", {"rounds": 5})])
def test_every_layer_of_a_residual_network_is_used(method, options):
    model, x = pathex.models.CifarResNet(8, width=4), torch.randn(2, 3, 12, 12)
    assert pathex.prune(model, method, sparsity=0.9, data=x, strict=True, **options).report.dead_layers == []


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("method", SCORERS)
def test_the_layout_of_memory_plays_no_part(method):
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=4), nn.ReLU(), nn.Conv2d(4, 5, 1)]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))
    plain = Wired(lambda net, x: net.body(net.point(x)), point=nn.Conv2d(3, 3, 1), body=body).double()
    turned = {"point": nn.Linear(3, 3).double(), "body": body}
    last = Wired(lambda net, x: net.body(net.point(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), **turned)
    last.point.weight.data, last.point.bias.data = plain.point.weight.detach().flatten(1), plain.point.bias.detach()
    x, y = torch.randn(6, 3, 6, 6, dtype=torch.float64), torch.arange(6) % 3
    expected = pathex.score(plain, method, (x, y))
    for model in (last, plain.to(memory_format=torch.channels_last)):
        found = pathex.score(model, method, (x.contiguous(memory_format=torch.channels_last), y))
        assert_close({name: found[name].reshape(score.shape) for name, score in expected.items()}, expected, 1e-8)


IMAGES, LABELS = torch.randn(12, 3, 8, 8), torch.arange(12) % 4
WAYS = {
    "slice": lambda x: x[:, :, ::2, ::2].flatten(1),
    "view": lambda x: x[:, :, ::2, ::2].contiguous().view(len(x), -1),
    "as_strided": lambda x: x.as_strided((len(x), 6, 4, 4), (384, 64, 16, 2)).flatten(1),
}


def bound(way):
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(3, 6, 3, padding=1), "norm": nn.BatchNorm2d(6), "head": nn.Linear(96, 4)}
    return Wired(lambda net, x: net.head(WAYS[way](torch.relu(net.norm(net.conv(x))))), **layers)


@pytest.mark.parametrize("method", ["snip", "ntk-sap", "px-cvpr24", "grasp", "px"])
def test_a_network_that_is_bound_to_a_layout_scores_as_one_that_is_not(method):
    data = [(IMAGES, LABELS)]
    expected = pathex.score(bound("slice"), method, data)
    assert_close(pathex.score(bound("view"), method, data), expected, 1e-3)
    if method == "px":
        with pytest.raises(UnsupportedOperation, match="no rule to read as_strided"):
            pathex.score(bound("as_strided"), method, data)
    else:
        assert_close(pathex.score(bound("as_strided"), method, data), expected, 1e-3)


def test_a_loss_may_view_the_outputs():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3))
    data = [(IMAGES, torch.rand(12, 2, 4, 4).round())]
    flat = pathex.score(network, "snip", data, loss=lambda p, y: (p.view(-1) - y.view(-1)).square().mean())
    whole = pathex.score(network, "snip", data, loss=lambda p, y: (p - y).square().mean())
    torch.testing.assert_close(flat, whole)


NARROW = {
    "module": lambda: nn.Conv2d(4, 8, 1, stride=2),
    "function": lambda: Wired(
        lambda net, x: nn.functional.conv2d(x, net.weight, stride=2), weight=nn.Parameter(torch.randn(8, 4, 1, 1))
    ),
}


@pytest.mark.parametrize("narrow", NARROW)
@pytest.mark.parametrize("method", ["ntk-sap", "px", "snip"])
def test_convolutions_that_channels_last_breaks_are_read_as_they_were(method, narrow):
    # Five times, as what is written beyond the memory of a tensor does not always end the process.
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), NARROW[narrow](), nn.Flatten(), nn.Linear(392, 4))
    layouts = []
    network[2].register_forward_pre_hook(lambda module, args: layouts.append(args[0].is_contiguous()))
    for _ in range(5):
        pathex.score(network, method, [(torch.randn(12, 3, 16, 16), LABELS)])
    assert method == "px" or layouts[-1]


@pytest.mark.filterwarnings("ignore:all scores are zero:pathex.errors.PathexWarning")
@pytest.mark.parametrize("method", [name for name in SCORERS if "scales" in pathex.methods(name).options])
def test_a_scale_of_zero_is_read_as_one_and_told_once(method):
    torch.manual_seed(7)
    parts = {"fc": nn.Linear(3, 3), "gamma": nn.Parameter(torch.zeros(3))}
    block = Wired(lambda net, x: x + net.gamma * net.fc(x).relu(), **parts)
    model = nn.Sequential(block, nn.Linear(3, 2)).double()
    data = (torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2)
    with pytest.warns(PathexWarning, match=r"read as one .*0\.gamma"):
        found = pathex.score(model, method, data)
    with pytest.warns(PathexWarning) as told:
        pathex.prune(model, method, sparsity=0.3, data=data, rounds=2)
    assert len([warning for warning in told if "read as one" in str(warning.message)]) == 1
    if method not in ("phew", "prospr"):  # which rank what no walk uses by magnitude, and train the scale
        assert not pathex.score(model, method, data, scales="stored")["0.fc.weight"].any()
    assert not model[0].gamma.any()
    with torch.no_grad():
        model[0].gamma.fill_(1.0)
    torch.testing.assert_close(found, pathex.score(model, method, data), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["px", *sorted(RUN_THE_NETWORK - {"prospr"})])
def test_outputs_that_no_class_or_weight_reaches(method):
    def form(net, x):
        return {"aux": x[:, :2] * 2, "logits": net.fc(x), "flat": net.fc(x).sum(1)}

    model = Wired(form, fc=nn.Linear(3, 2))
    with pytest.raises(InvalidInput, match="depends on no prunable weight; name another output with output="):
        pathex.score(model, method, (X, Y))
    if method in LOSSES:
        with pytest.raises(InvalidInput, match=r"needs outputs \(N, classes, ...\) with two .* not \(4,\); loss='bce'"):
            pathex.score(model, method, (X, Y), output="flat")
    assert pathex.score(model, method, (X, Y), output="logits")["fc.weight"].any()


def _gate(net, x):
    a, b = x.chunk(2, 1)
    return torch.cat([a * b, a], 1)


BEYOND = {"gelu": nn.GELU(), "layer_norm": nn.LayerNorm(4), "softmax": nn.Softmax(1), "mul": Wired(_gate)}
BEYOND |= {"sigmoid": nn.Sigmoid()}
WITHIN = (nn.ReLU(), nn.LeakyReLU(), nn.ReLU6(), nn.BatchNorm1d(4), nn.Identity(), nn.PReLU(), nn.Dropout())


def _around(*modules):
    return nn.Sequential(nn.Linear(3, 4), *modules, nn.Linear(4, 2))


@pytest.mark.parametrize("function", BEYOND)
@pytest.mark.parametrize("method", ["px", "px-literal", "synflow", "synflow-l2"])
def test_path_methods_doubt_networks_that_are_not_piecewise_linear(function, method):
    model, options = _around(BEYOND[function]), {} if method == "px" else {"per_sample": "one"}
    with pytest.warns(PathexWarning, match=rf"{method} is derived for piecewise-linear networks.*{function}") as caught:
        pathex.prune(model, method, sparsity=0.5, data=X, rounds=3, **options)
    assert len([each for each in caught if "derived" in str(each.message)]) == 1
    with pytest.raises(InvalidInput, match=rf"{function}.*strict"):
        pathex.score(model, method, X, strict=True, **options)
    assert survey(trace(_around(nn.SiLU(), nn.ReLU(), BEYOND[function], nn.SiLU()), X)).beyond == ("silu", function)


@pytest.mark.parametrize(
    ("method", "modules"),
    [
        *((method, WITHIN) for method in ("px", "synflow")),
        *((method, [nn.GELU()]) for method in ("magnitude", "random", "snip", "grasp", "ntk-diagonal")),
    ],
)
def test_other_networks_and_methods_raise_no_doubt(method, modules):
    pathex.score(_around(*modules), method, [(X, Y)], strict=True)


def network():
    """With mixed flags, some gradients and a frozen layer; and two batches."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(36, 3)).train()
    x, y = torch.randn(8, 1, 5, 5), torch.arange(8) % 3
    model(x).sum().backward()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[5].weight.grad = None
    return model, [(x[:4], y[:4]), (x[4:], y[4:])]


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_comes_back_as_it_was(variant):
    method, options = VARIANTS[variant]
    model, batches = network()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    data = copy.deepcopy(batches)
    with unchanged(model):
        scores = pathex.score(model, method, batches, prunable=[nn.Conv2d], **options)
    assert all(not score.requires_grad and score.isfinite().all() for score in scores.values())
    with unchanged(model):
        how = {"sparsity": 0.5, "rounds": 2, "prunable": [nn.Conv2d], **options}
        first, again = (pathex.prune(model, method, data=batches, **how) for _ in range(2))
    assert_same(batches, data)
    assert first.mask.kept == 72 and first.mask == again.mask
    assert calls or method not in RUN_THE_NETWORK


@pytest.mark.parametrize(
    ("method", "calls"),  # methods that read paths run the network once, when it is traced
    [*((name, 1) for name in ("px", "px-literal", "px-cvpr24", "synflow")), *(("ntk-sap", n) for n in (1, 2, 3))],
)
def test_after_an_error_in_the_middle_too(method, calls):
    model, batches = network()
    left = list(range(calls - 1))

    def fail(module, args):
        if not left:
            raise RuntimeError("in the middle")
        left.pop()

    model[5].register_forward_pre_hook(fail)
    with unchanged(model), pytest.raises((RuntimeError, UnsupportedOperation), match="in the middle"):
        pathex.prune(model, method, sparsity=0.5, data=batches, rounds=5, prunable=[nn.Conv2d])


def test_after_a_refused_operation_too():
    strange = Wired(lambda net, x: torch.fft.fft(x).real)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), strange, nn.Linear(4, 2)), torch.randn(4, 3)
    with unchanged(model), pytest.raises(UnsupportedOperation, match=r"fft.*'2' \(Wired\)"):
        pathex.score(model, "px", x)
    with pytest.warns(PathexWarning, match="not counted"):
        assert pathex.prune(model, "magnitude", sparsity=0.5, data=x).report.disconnected is None


@pytest.mark.parametrize("method", ["px", "synflow-l2", "magnitude"])
def test_shared_modules_and_tied_weights(method):
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    twice = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 2))
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    tied[0], tied[4] = copy.deepcopy(shared), twice[4]
    tied[2].weight, tied[2].bias = tied[0].weight, tied[0].bias
    x = torch.randn(5, 4)
    with unchanged(tied):
        first, second = pathex.score(twice, method, x), pathex.score(tied, method, x)
        assert pathex.prune(tied, method, sparsity=0.5, data=x, rounds=2).mask.kept == 12
    assert list(first) == list(second) == ["0.weight", "4.weight"]
    assert all(torch.allclose(first[name], second[name]) for name in first)
    assert tied[2].weight is tied[0].weight


# Of DeepLabV3+. phew walks along single paths, which takes most of a minute here; the released codes need ReLU.
ON_PIXELS = [name for name in SCORERS if name not in {"phew", "px-cvpr24", "px-cvpr24-v2"}]
ON_OPEN_PATHS = {"synflow", "synflow-l2", "px-literal"}


@pytest.fixture(scope="module")
def segmenter():
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    options = {"encoder_weights": None, "encoder_output_stride": 8, "classes": 5}
    return smp.DeepLabV3Plus("mobilenet_v2", **options).eval()


@pytest.fixture(scope="module")
def pairs():
    """Label maps in which 255 stands for no class."""
    torch.manual_seed(1)
    images, labels = torch.randn(4, 3, 24, 32), torch.randint(0, 5, (4, 24, 32))
    labels[0, :9], labels[:, :, 27:] = 255, 255
    return images, labels


@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
@pytest.mark.parametrize("method", ON_PIXELS)
def test_every_method_prunes_a_segmentation_network(segmenter, pairs, method):
    few = {"projections": 2} if "projections" in pathex.methods(method).options else {}
    result = pathex.prune(segmenter, method, sparsity=0.2, data=pairs, rounds=1, progress=False, **few)
    assert result.mask.kept == round(0.8 * result.mask.total)
    # SynFlow and px-literal find little in the convolution that carries the early features to the decoder.
    assert set(result.report.dead_layers) <= ({"decoder.block1.0.weight"} if method in ON_OPEN_PATHS else set())


def test_px_sums_over_the_outputs_of_all_pixels(segmenter, pairs):
    # Every layer on all paths holds the whole sum: the first convolution, and the last, whose outputs are pixels.
    scores = pathex.score(copy.deepcopy(segmenter).double(), "px", pairs[0].double())
    assert isinstance(segmenter.encoder.features[0][0], nn.Conv2d)
    first, last = scores["encoder.features.0.0.weight"].sum(), scores["segmentation_head.0.weight"].sum()
    torch.testing.assert_close(first, last, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("method", "option", "values", "allowed"),
    [
        ("grasp", "temperature", (0, -1.0, math.inf, math.nan, "hot", True, None), "a positive number"),
        ("ntk-sap", "epsilon", (0, math.inf, True, "small"), "a positive number"),
        ("ntk-sap", "draws", (0,), "an integer of at least 1"),
        ("ntk-diagonal", "projections", (-1, 2.0), "None or an integer of at least 0"),
        ("node-path", "alpha", (1.5, "much"), "a number in [0, 1]"),
        ("node-path", "beta", (-1, math.inf), "a number of at least 0"),
        ("phew", "walks", (0, -1, 2.5, True), "an integer of at least 1, or None"),
        ("prospr", "steps", (-1, 1.5), "an integer of at least 0"),
        ("prospr", "lr", (0, math.nan), "a positive number"),
        ("prospr", "momentum", (1.0,), "a number in [0, 1)"),
    ],
)
def test_bad_options(method, option, values, allowed):
    for value in values:
        with pytest.raises(InvalidInput, match=re.escape(f"{option} must be {allowed}, not {value!r}")):
            pathex.score(nn.Linear(3, 2), method, (X, Y), **{option: value})


@pytest.mark.parametrize(
    ("method", "option", "known"),
    [
        ("ntk-sap", "inputs", "data, normal"),
        ("ntk-sap", "calibration", "batch, running"),
        ("fisher-diagonal", "labels", "given, model"),
        ("node-path", "per_sample", "one, refuse"),
        ("phew", "per_sample", "one, refuse"),
    ],
)
def test_unknown_names_of_options(method, option, known):
    with pytest.raises(UnknownName, match=f"unknown {option} 'other'.*Known: {known}"):
        pathex.score(nn.Linear(3, 2), method, (X, Y), **{option: "other"})
