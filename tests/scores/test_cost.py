"""What a score costs: memory within the budget, the passes that the page of a method tells, and no waiting in them.

Memory is what PyTorch allocates in a call, followed by its profiler; passes are counted where PyTorch does the work, as
a guard against a pass too many. Seconds are measured by ``pathex bench``. In the passes of a round the host never waits
for the device and sends it nothing: they can be queued, or captured. Tensors on the device ``meta`` have shapes but no
values, so whatever reads a value in Python raises; and an operation that takes tensors of two devices is seen.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import pathex
from benchmarks.measure import tensor_peak
from brute_force.cases import Wired
from pathex import scores
from pathex.errors import InvalidInput, PathexWarning
from pathex.masks import prunable_weights
from pathex.scores import Problem, px, synflow, synflow_l2

COUNT, SIZE = 40, 32
# Images of their own; and what is on the way inside of attention, which is counted as one function.
LOOSE = {"ResNet-prospr": 1.05, "ResNet-ntk-sap": 1.05, "attention-px": 1.05, "attention-snip": 1.15}


def _attending(net, x):
    x = net.patches(x).flatten(2).transpose(1, 2)
    x = x + net.attention(x, x, x, need_weights=False)[0]
    return net.head((x + net.narrow(nn.functional.gelu(net.wide(x)))).mean(1))


def _network(kind):
    torch.manual_seed(0)
    if kind == "ResNet":
        return pathex.models.CifarResNet(8, num_classes=5, width=8)
    layers = {"patches": nn.Conv2d(3, 24, 4, 4), "attention": nn.MultiheadAttention(24, 4, batch_first=True)}
    return Wired(_attending, **layers, wide=nn.Linear(24, 48), narrow=nn.Linear(48, 24), head=nn.Linear(24, 5))


def _images(count):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 5


def _peak(model, method, memory, **options):
    images = _images(COUNT)

    def call():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "px is derived|px-literal is derived|calibrating on", PathexWarning)
            pathex.score(model, method, images, memory=memory, **options)

    return tensor_peak(torch.device("cpu"), call)


FIXED = {"calibration": "batch"}
CASES = [
    ("ResNet", "px", {}),
    ("ResNet", "px", {"calibration": "running"}),
    ("ResNet", "px-literal", {}),
    ("ResNet", "snip", FIXED),
    ("ResNet", "grasp", FIXED),
    ("ResNet", "prospr", FIXED),
    ("ResNet", "ntk-sap", {}),
    ("ResNet", "ntk-diagonal", {"projections": 2}),
    ("ResNet", "fisher-diagonal", {"projections": 2}),
    ("attention", "px", {}),
    ("attention", "snip", FIXED),
]


@pytest.mark.parametrize(("kind", "method", "options"), CASES, ids=[f"{k}-{m}-{o}" for k, m, o in CASES])
def test_the_budget_is_kept(kind, method, options):
    model = _network(kind)
    everything = _peak(model, method, "1GiB", **options)
    budget = everything // 2
    assert budget / 2 < _peak(model, method, budget, **options) <= budget * LOOSE.get(f"{kind}-{method}", 1)


@pytest.mark.parametrize(
    ("method", "most"), [("px", 17), ("px-literal", 22), ("synflow", 15), ("snip", 17), ("magnitude", 11)]
)
def test_what_a_prune_takes_beside_the_model(method, most):
    """Bytes a parameter at the peak of two rounds, of a network whose images are small beside its weights."""
    layers = [nn.Conv2d(64, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3), nn.ReLU(), nn.Conv2d(256, 512, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 5))
    data = [(torch.randn(2, 64, 8, 8), torch.arange(2))]

    def call():
        pathex.prune(model, method, sparsity=0.5, data=data, rounds=2, progress=False)

    call()  # traces
    assert tensor_peak(torch.device("cpu"), call) / sum(p.numel() for p in model.parameters()) < most


def test_what_does_not_fit_is_said_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pathex.prune(_network("ResNet"), "px", sparsity=0.5, data=_images(3), rounds=3, memory="20KiB", progress=False)
    beside, image, calibration = [str(warning.message) for warning in caught]
    assert re.fullmatch(
        r"weights, scores and images take about 0\.\d+ MiB of memory, more than half .* 0.01953 MiB.*", beside
    )
    assert re.match(r"one image takes 0\.\d+ MiB of memory, more than the budget of 0.01953 MiB leaves", image)
    assert re.match(
        r"calibrating on 3 images at once takes about .* in parts it takes the time of 5 passes; allow more memory or",
        calibration,
    )
    with pytest.raises(InvalidInput, match="weights, scores and images take about"):
        pathex.score(_network("ResNet"), "px", _images(3), memory="20KiB", strict=True)
    deep = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(20)], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InvalidInput, match=r"one image takes .* more than the budget of .* leaves"):
        pathex.score(deep, "px", _images(1), memory="200KiB", strict=True)


@pytest.mark.parametrize("method", ["snip", "grasp", "px-cvpr24"])
def test_batches_that_cannot_be_cut_are_said_to_be_too_large(method):
    with pytest.warns(PathexWarning, match="a batch of 6 images takes about .* allowed: smaller batches"):
        pathex.score(_network("ResNet"), method, _images(6), memory="100KiB")


quietly = pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
IMAGES, CLASSES = 6, 3


class Passes(TorchDispatchMode):
    """Counts convolutions in images: one forward pass of one image runs each convolution of the network once."""

    def __init__(self):
        super().__init__()
        self.forwards = self.backwards = self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        operator = func._overloadpacket
        if operator is torch.ops.aten.convolution:
            self.forwards += len(args[0])
        elif operator is torch.ops.aten.convolution_backward:
            self.backwards += len(args[0])
        if operator in flop_registry:
            self.operations += flop_registry[operator](*args, **(kwargs or {}), out_val=out)
        return out


def cost_of(method):
    """The line on the method's page."""
    page = Path(__file__).parents[2] / "docs" / "methods" / f"{method}.md"
    return next(line for line in page.read_text(encoding="utf-8").splitlines() if "**Cost of a round:**" in line)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = pathex.models.CifarResNet(8, num_classes=CLASSES, width=4)
    return model, torch.randn(IMAGES, 3, 16, 16), torch.arange(IMAGES) % CLASSES


def of_one_round(problem, method, **options):
    """Images that went forward and back through the network in one round, and floating-point operations.

    The difference between three rounds and two, without what is done once for all of them.
    """
    model, x, y = problem
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    counted = []
    pathex.score(model, method, [(x, y)], **options)  # a network is traced once
    for rounds in (2, 3):
        with Passes() as passes:
            pathex.prune(model, method, sparsity=0.02, data=[(x, y)], rounds=rounds, progress=False, **options)
        counted.append((passes.forwards / convolutions, passes.backwards / convolutions, passes.operations))
    return tuple(after - before for before, after in zip(*counted, strict=True))


def of_one_step(model, x):
    """Operations of one forward and one backward pass, as a training step has them."""
    with Passes() as forward:
        out = model(x)
    with Passes() as backward:
        out.sum().backward()
    return forward.operations, backward.operations


# Method, options, what its card says, images forward (None: those of further passes are not told), images back.
CARDS = [
    ("px", {}, "1 forward pass without gradient, 1 forward and backward pass", 2 * IMAGES, IMAGES),
    ("px", {"redraw": True}, "1 forward pass without gradient", 2 * IMAGES, IMAGES),
    ("px", {"calibration": "running"}, "1 forward pass without gradient", 2 * IMAGES, IMAGES),
    ("px-literal", {}, "2 forward passes without gradient", 2 * IMAGES + 1, 1),
    ("px-literal", {}, "1 forward and backward pass of one image", 2 * IMAGES + 1, 1),
    ("px-cvpr24", {}, "1 forward pass without gradient, 1 forward and backward pass", 2 * IMAGES, IMAGES),
    ("synflow", {}, "1 forward and backward pass of one input", 1, 1),
    ("synflow-l2", {"calibration": "running"}, "1 forward and backward pass of one input, in float32", 1, 1),
    ("synflow-l2", {"calibration": "batch"}, "with calibration 1 forward pass more", IMAGES + 1, 1),
    ("snip", {}, "1 forward and backward pass", IMAGES, IMAGES),
    ("iterative-snip", {}, "in each round 1 forward and backward pass", IMAGES, IMAGES),
    ("force", {}, "in each round 1 forward and backward pass", IMAGES, IMAGES),
    ("node-path", {}, "1 forward and backward pass of one image", 1, 1),
    ("magnitude", {}, "no pass", 0, 0),
    ("random", {}, "no pass", 0, 0),
    ("grasp", {}, "2 forward and backward passes and 1 backward pass through the second", None, 3 * IMAGES),
    ("ntk-sap", {}, "2 backward passes for each draw", None, 2 * IMAGES),
    ("ntk-diagonal", {}, "1 forward pass and as many backward passes as outputs", None, IMAGES * CLASSES),
    ("fisher-diagonal", {}, "for each image 1 forward pass and 1 backward pass (given)", None, IMAGES),
    ("phew", {"walks": 5}, "1 forward and backward pass of one image in float64", None, 1),
]


@quietly
@pytest.mark.parametrize(
    ("method", "options", "said", "forwards", "backwards"), CARDS, ids=[f"{m}-{o}-{s[:10]}" for m, o, s, *_ in CARDS]
)
def test_a_round_costs_the_passes_of_the_card(problem, method, options, said, forwards, backwards):
    assert said in cost_of(method)
    counted = of_one_round(problem, method, **options)
    assert counted[1] == backwards
    if forwards is not None:
        assert counted[0] == forwards
        # Nothing beside these passes multiplies matrices.
        forward, backward = of_one_step(*problem[:2])
        assert counted[2] == (forwards * forward + backwards * backward) / IMAGES


@quietly
def test_micro_batches_cost_a_pass_that_calibrates_or_part_of_one_for_each_batchnorm(problem):
    assert of_one_round(problem, "px", memory="300KiB")[:2] == (3 * IMAGES, IMAGES)
    assert of_one_round(problem, "px", memory=1, calibration="running")[:2] == (2 * IMAGES, IMAGES)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in problem[0].modules())
    forwards, backwards, _ = of_one_round(problem, "px", memory=1)
    # One convolution before the first BatchNorm, all of them before the last, and a pass that finds no more.
    assert 3 * IMAGES < forwards <= (2 + (norms + 1) / 2 + 1) * IMAGES
    assert backwards == IMAGES


NETWORKS = ["resnet20", "timm:test_efficientnet", "timm:test_convnext", "timm:test_vit"]
LARGE = ["vgg11_bn", *(f"torchvision:{name}" for name in ("convnext_tiny", "googlenet", "mobilenet_v3_small"))]
LARGE += ["timm:darknet53", "timm:vit_tiny_patch16_224"]
MODULES = {"px": px, "synflow": synflow, "synflow-l2": synflow_l2}


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        found = {tensor.device.type for tensor in tree_leaves((args, kwargs, result)) if isinstance(tensor, Tensor)}
        assert len(found) <= 1, f"{func} on {found}"
        return result


def without_values(value):
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, Mapping):
        return {name: without_values(entry) for name, entry in value.items()}
    return tuple(map(without_values, value)) if isinstance(value, tuple) else value


def summed(method, problem, **options):
    """What a method sums, without the look at it that decides about the precision."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", PathexWarning)
        patch.setattr(MODULES[method], "safely", lambda problem, run: run(problem))
        patch.setattr(MODULES[method], "with_sum", lambda reader, summed: summed(reader))
        return scores.find(method).having(options).score(problem)


def of_second_round(model, x, method, **options):
    """The passes of a second round, on tensors without values."""
    mask = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    # All images at once: how many fit is a question to the host.
    problem = Problem(model, prunable_weights(model), [(x, None)], mask, memory=2**40)
    summed(method, problem, **options)
    model.to("meta")
    memo = {name: without_values(entry) for name, entry in problem.memo.items()}
    held = {"prunable": prunable_weights(model), "batches": [(x.to("meta"), None)], "mask": without_values(mask)}
    with OneDevice():
        return summed(method, replace(problem, round=2, memo=memo, **held), **options)


@pytest.mark.parametrize("method", MODULES)
@pytest.mark.parametrize("name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_no_pass_reads_a_value(name, method):
    side = 64 if name == "torchvision:googlenet" else 32
    options = {"img_size": side} if "vit" in name else {}
    model = pathex.models.create(name, num_classes=3, **options).eval()
    how = {} if method == "px" else {"per_sample": "one"}
    total, found = of_second_round(model, torch.randn(3, 3, side, side), method, **how)
    assert total.shape == ()
    assert {weight: score.device.type for weight, score in found.items()} == dict.fromkeys(
        prunable_weights(model), "meta"
    )


@pytest.mark.parametrize("smooth", ["secant", "tangent", "mixed"])
@pytest.mark.parametrize("calibration", ["batch", "running"])
def test_no_option_of_px_reads_a_value(calibration, smooth):
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.PReLU(4), nn.ReLU6(), nn.GELU()
    head = nn.MaxPool2d(2), nn.RReLU(), nn.Sigmoid(), nn.Hardswish(), nn.Hardsigmoid(), nn.Flatten(), nn.LazyLinear(3)
    model = nn.Sequential(*layers, *head).eval()
    x = torch.randn(3, 3, 8, 8)
    model(x)
    of_second_round(model, x, "px", calibration=calibration, smooth=smooth)


@pytest.mark.parametrize(
    "wrong", [lambda out: out * float(out.detach().sum()), lambda out: out * torch.ones(3)], ids=["reads", "sends"]
)
def test_a_pass_that_waits_or_sends_is_seen(monkeypatch, wrong):
    run = px.run_linear
    monkeypatch.setattr(px, "run_linear", lambda linear, inputs: wrong(run(linear, inputs)))
    with pytest.raises((RuntimeError, AssertionError), match="meta"):
        of_second_round(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(2, 3, 2, 2), "px")
