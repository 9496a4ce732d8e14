"""``tf32=True``: what the GPU is told, and by rounding as its tensor cores do, what becomes of the weights kept."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import pathex
from pathex import scores
from pathex.errors import PathexWarning
from pathex.graph import untouched
from pathex.masks import prunable_weights
from pathex.scores import Problem, precision

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
    model = pathex.models.create(name, num_classes=10)
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
            precision.safely(reader, summed)
    assert seen[0] == ("tf32", "tf32")
    assert "tf32" not in seen[1]


@pytest.mark.gpu
def test_products_on_a_gpu_are_in_tf32():
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("the GPU has no TF32")
    torch.manual_seed(0)
    model, x = pathex.models.create("resnet20", num_classes=10).cuda(), torch.randn(8, 3, 32, 32)
    full, again, rough = (pathex.score(model, "px", x, **options) for options in ({}, {}, {"tf32": True}))
    name = "blocks.8.conv2.weight"
    exact = (full[name] - again[name]).norm() / full[name].norm()
    error = (full[name] - rough[name]).norm() / full[name].norm()
    assert exact < 1e-5 < error < 1e-2
