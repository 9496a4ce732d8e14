"""Float32 where it is enough: the weights kept are those of float64; float64 where sums leave it; TF32 if told so.

TF32 by rounding as the tensor cores of a GPU do.
"""

import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torchvision.models.resnet import Bottleneck, ResNet

import pathex
from benchmarks import float32_trajectories
from benchmarks.float32_trajectories import Case, plain, trajectory
from brute_force.cases import assert_close, perceptron
from pathex import scores
from pathex.errors import PathexWarning
from pathex.graph import untouched
from pathex.masks import all_kept, prunable_weights
from pathex.models import CifarResNet, create
from pathex.scores import Problem, precision, px_literal


def _mlp(width, depth, activation=nn.ReLU):
    torch.manual_seed(0)
    return perceptron(*[width] * (depth + 1), 3, activation=activation, bias=False)


def _images(*shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * scale


@pytest.fixture
def precisions(monkeypatch):
    """In which precisions networks of ones were computed."""
    seen = []
    run = px_literal.run_linear

    def spied(reading, inputs):
        if reading.tape is not None:  # with the gates of images
            seen.append(inputs[0].dtype)
        return run(reading, inputs)

    monkeypatch.setattr(px_literal, "run_linear", spied)
    return seen


NARROW, WIDE = torch.float32, torch.float64
# The network, its images, and the precisions of its network of ones; before them is the one of the network in float64.
ONES = {
    "resnet": (lambda: CifarResNet(8, num_classes=3, width=4), _images(4, 3, 16, 16), [NARROW]),
    "perceptron": (lambda: _mlp(8, 3), _images(6, 8), [NARROW]),
    "tiny images": (lambda: _mlp(8, 3), _images(6, 8, scale=1e-12), [NARROW]),
    "huge images": (lambda: _mlp(8, 3), _images(6, 8, scale=1e12), [NARROW]),
    "slopes": (lambda: _mlp(8, 3, lambda: nn.LeakyReLU(0.1)), _images(6, 8), [NARROW]),
    "beyond float32 without a scale": (lambda: _mlp(64, 25), _images(3, 64), [NARROW]),
    "beyond 1e60": (lambda: _mlp(64, 35), _images(3, 64), [WIDE]),  # 64^36
    # An open gate counts 1, such a slope 10,000.
    "steep slopes": (lambda: _mlp(8, 10, lambda: nn.LeakyReLU(100.0)), _images(6, 8), [NARROW, WIDE]),
}


@pytest.mark.parametrize("name", ONES)
def test_float32_is_used_where_it_is_enough(name, precisions):
    make, x, expected = ONES[name]
    model = make()
    # With stored statistics, so that both precisions record the same gates.
    truth = pathex.score(model.double(), "px-literal", x.double(), calibration="running")
    assert all(score.any() for score in truth.values())
    assert_close(pathex.score(model.float(), "px-literal", x, calibration="running"), truth, 1e-4)
    assert precisions == [WIDE, *expected]


def test_images_of_zeros():
    model = _mlp(8, 2)
    with pytest.warns(PathexWarning, match="all scores are zero"):
        found = pathex.score(model, "px-literal", torch.zeros(2, 8))
    assert not any(score.any() for score in found.values())


def test_an_output_that_no_image_reaches_is_looked_at_once_in_float64_and_one_that_no_path_reaches_never(precisions):
    model, x = _mlp(8, 2), _images(6, 8).abs()
    with torch.no_grad():
        model.get_parameter("0.weight")[0] = -1.0  # closed for all images
    mask = pathex.Mask(all_kept(prunable_weights(model)))
    how = {"mask": mask, "calibration": "running"}
    mask["4.weight"][1] = False
    no_path = pathex.score(model, "px-literal", x, **how)
    assert precisions == [NARROW]
    mask["2.weight"][0, 1:] = False
    mask["4.weight"][1, 0] = True
    no_image = pathex.score(model, "px-literal", x, **how)
    assert precisions == [NARROW, NARROW, WIDE]
    for found in (no_path, no_image):
        assert not found["4.weight"][1].any() and found["4.weight"][0].any()
    precisions.clear()
    pathex.prune(model, "px-literal", sparsity=0.5, data=x, rounds=4, progress=False, **how)
    assert precisions.count(NARROW) == 4 and precisions.count(WIDE) == 1


# The last two are deep networks without norms, whose sums over paths leave float32.
TRAJECTORIES = {
    "resnet8": Case(lambda: CifarResNet(8, width=6), 16, 6, 5, 0.9),
    "resnet8-sparse": Case(lambda: CifarResNet(8, width=6), 16, 6, 5, 0.982),
    "vgg16_bn": Case(lambda: create("vgg16_bn", width=0.0625), 16, 6, 3, 0.982),
    "resnet50": Case(lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=4), 32, 4, 3, 0.9),
    "plain": Case(lambda: plain(20, 12), 8, 4, 4, 0.5),
    "plain-sparse": Case(lambda: plain(20, 12), 8, 4, 4, 0.98),
}


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_float32_keeps_what_float64_keeps(name):
    case = TRAJECTORIES[name]
    rows = list(trajectory(case, name))
    assert [row["round"] for row in rows] == list(range(1, case.rounds + 1))
    for row in rows:
        assert row["finite"]
        # One weight may change places with the next one where few are kept.
        one = 0 if name.startswith("plain") else 1 / (row["density"] * row["weights"])
        assert row["same"] >= min(0.999, 1 - one) - 1e-6
    # Left alone, the two drift apart: each weight that differs changes what the next round sees.
    assert rows[-1]["free_jaccard"] > 0.5 or name.startswith("plain")


def test_the_committed_rows_keep_the_promise():
    rows = pd.read_csv(Path(float32_trajectories.__file__).parent / "rows" / "float32_trajectories.csv")
    assert set(rows["network"]) == set(float32_trajectories.CASES)
    assert rows["finite"].all()
    assert rows["same"].min() >= 0.999
    last = rows.groupby("network").tail(1).set_index("network")
    assert all(last.loc[name, "round"] == case.rounds for name, case in float32_trajectories.CASES.items())


PRODUCTS = {torch.ops.aten.convolution, torch.ops.aten.convolution_backward, torch.ops.aten.mm, torch.ops.aten.addmm}


class Rounded(TorchDispatchMode):
    """Rounds float32 factors of products to the 10 bits behind the leading one that TF32 has."""

    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket in PRODUCTS:
            self.products += 1
            args = tree_map(_rounded, args)
        return func(*args, **(kwargs or {}))


def _rounded(value):
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def test_rounding_is_to_the_nearest_of_1024_steps():
    values = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-12, 1 + 2**-11, 1 + 3 * 2**-11, -1.75, 0.0])
    assert _rounded(values).tolist() == [1.0, 1 + 2**-10, 1.0, 1.0, 1 + 2**-9, -1.75, 0.0]


@pytest.mark.parametrize(
    ("method", "name", "side", "least"),
    [
        ("px", "resnet20", 32, 0.998),
        pytest.param("px", "torchvision:resnet50", 64, 0.95, marks=pytest.mark.slow),
        ("synflow", "resnet20", 32, 0.9998),
        ("synflow-l2", "resnet20", 32, 0.9998),
    ],
)
def test_most_kept_weights_are_the_same(method, name, side, least):
    torch.manual_seed(0)
    model = create(name, num_classes=10)
    sparsity = 0.9 if method == "px" else 0.5  # where SynFlow keeps a path in one round
    how = {"sparsity": sparsity, "data": torch.randn(4, 3, side, side), "rounds": 1, "progress": False}
    full = pathex.prune(model, method, **how).mask
    with Rounded() as rounded:
        found = pathex.prune(model, method, **how).mask
    assert rounded.products > 20
    assert least < sum(int((full[weight] & found[weight]).sum()) for weight in full) / full.kept < 1


@pytest.mark.parametrize("method", ["px", "synflow", "synflow-l2"])
def test_passes_are_in_tf32_and_nothing_else(method, monkeypatch):
    backends = torch.backends
    seen = []

    def summed(reader):
        seen.append((backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision))
        return torch.ones(()), {name: torch.ones_like(weight) for name, weight in reader.problem.prunable.items()}

    class OnGpu(Problem):
        device = torch.device("cuda")

    model = nn.Linear(3, 2)
    found = scores.find(method)
    for tf32 in (True, False):
        problem = OnGpu(model, prunable_weights(model), [(torch.randn(2, 3), None)])
        with warnings.catch_warnings(), untouched(model):
            warnings.simplefilter("ignore", PathexWarning)
            reader = found.having({"tf32": tf32}).reader(problem)
            monkeypatch.setattr(type(reader), "precision", torch.float32)
            precision.with_sum(reader, summed)
    assert seen[0] == ("tf32", "tf32")
    assert "tf32" not in seen[1]


@pytest.mark.gpu
def test_products_on_a_gpu_are_in_tf32():
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("the GPU has no TF32")
    torch.manual_seed(0)
    model, x = create("resnet20", num_classes=10).cuda(), torch.randn(8, 3, 32, 32)
    full, again, rough = (pathex.score(model, "px", x, **options) for options in ({}, {}, {"tf32": True}))
    name = "blocks.8.conv2.weight"
    exact = (full[name] - again[name]).norm() / full[name].norm()
    error = (full[name] - rough[name]).norm() / full[name].norm()
    assert exact < 1e-5 < error < 1e-2
