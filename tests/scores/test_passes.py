"""What a round costs is what the method's page says: passes of the network, counted where PyTorch does the work.

A guard against a pass too many; seconds are measured by ``pathex bench``.
"""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import pathex

pytestmark = pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")

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
    ("npb", {}, "1 forward and backward pass of one image", 1, 1),
    ("magnitude", {}, "no pass", 0, 0),
    ("random", {}, "no pass", 0, 0),
    ("grasp", {}, "2 forward and backward passes and 1 backward pass through the second", None, 3 * IMAGES),
    ("ntk-sap", {}, "2 backward passes for each draw", None, 2 * IMAGES),
    ("ntk-diagonal", {}, "1 forward pass and as many backward passes as outputs", None, IMAGES * CLASSES),
    ("fisher-diagonal", {}, "for each image 1 forward pass and 1 backward pass (given)", None, IMAGES),
    ("phew", {"walks": 5}, "1 forward and backward pass of one image in float64", None, 1),
]


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


def test_micro_batches_cost_a_pass_that_calibrates(problem):
    assert of_one_round(problem, "px", memory="300KiB")[:2] == (3 * IMAGES, IMAGES)
    assert of_one_round(problem, "px", memory=1, calibration="running")[:2] == (2 * IMAGES, IMAGES)


def test_calibration_in_parts_costs_part_of_a_pass_for_each_batchnorm(problem):
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in problem[0].modules())
    forwards, backwards, _ = of_one_round(problem, "px", memory=1)
    # One convolution before the first BatchNorm, all of them before the last, and a pass that finds no more.
    assert 3 * IMAGES < forwards <= (2 + (norms + 1) / 2 + 1) * IMAGES
    assert backwards == IMAGES
