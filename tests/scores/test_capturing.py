"""Captured rounds against those that are carried out one function at a time.

Without a GPU a capture is played by a trace: what Python did is done once, and a replay repeats the operations alone,
on the same memory. Whatever a graph would freeze, such as a mask, is frozen there too.
"""

import inspect
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

import pathex
from pathex.errors import InvalidInput, PathexWarning
from pathex.scores import _capturing

METHODS = {"px": {}, "synflow": {"per_sample": "one"}, "synflow-l2": {"per_sample": "one"}}


class Traced:
    """Traces what it captures; a replay runs the trace and writes into what the capture found."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, work: Callable[[], None], device: torch.device) -> Callable[[], object]:
        self.captures += 1
        place = inspect.getclosurevars(work).nonlocals["self"]

        def found() -> tuple[Tensor, ...]:
            work()
            return tuple(tree_leaves(place._found))

        trace = make_fx(found)()
        place._found = tree_map(lambda tensor: torch.full(tensor.shape, torch.nan, dtype=tensor.dtype), place._found)

        def replay() -> None:
            self.replays += 1
            with torch.no_grad():
                for static, value in zip(tree_leaves(place._found), trace(), strict=True):
                    static.copy_(value)

        return replay


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Traced:
    made = Traced()
    monkeypatch.setattr(_capturing, "obstacle", lambda _: None)
    monkeypatch.setattr(_capturing, "cuda_graph", made)
    return made


def rounds_of(model: nn.Module, method: str, **how: Any) -> tuple[list[dict[str, Tensor]], pathex.Mask]:
    """The masks of all rounds, and the last one."""
    torch.manual_seed(0)
    masks: list[dict[str, Tensor]] = []
    settings: dict[str, Any] = {"sparsity": 0.9, "data": torch.randn(5, 3, 32, 32), "rounds": 5, "progress": False}
    settings["on_round"] = lambda _, mask: masks.append(dict(mask))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PathexWarning)
        found = pathex.prune(model, method, **{**settings, **how})
    return masks, found.mask


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(mask[name], others[name]) for mask, others in zip(one, other, strict=True) for name in mask
    )


@pytest.mark.parametrize("name", ["resnet20", "vgg11_bn", "torchvision:mobilenet_v3_small"])
@pytest.mark.parametrize("method", METHODS)
def test_replayed_rounds_are_the_rounds_bit_for_bit(traced: Traced, method: str, name: str) -> None:
    model = pathex.models.create(name, num_classes=3)
    plain, _ = rounds_of(model, method, **METHODS[method])
    assert traced.captures == 0
    captured, _ = rounds_of(model, method, capture=True, **METHODS[method])
    assert same(plain, captured)
    assert traced.captures >= 1 and traced.replays >= 4  # one more of each where float32 does not hold the sum


@pytest.mark.parametrize("options", [{"calibration": "running"}, {"smooth": "mixed"}, {"memory": "3MB"}])
def test_options_of_px_are_captured(traced: Traced, options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(7200, 3))
    plain, _ = rounds_of(model, "px", **options)
    captured, _ = rounds_of(model, "px", capture=True, **options)
    assert same(plain, captured)
    assert (traced.captures, traced.replays) == (1, 4)


def test_rounds_that_leave_float32_are_captured_in_float64_too(traced: Traced) -> None:
    layers = [layer for _ in range(30) for layer in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 16), *layers, nn.Linear(16, 3))
    with torch.no_grad():
        for entry in model.parameters():
            entry.mul_(1e-1)
    plain, _ = rounds_of(model, "synflow-l2", sparsity=0.3)
    captured, _ = rounds_of(model, "synflow-l2", sparsity=0.3, capture=True)
    assert same(plain, captured)
    assert traced.captures == 1 and traced.replays == 4  # the first round knew that the later ones need float64


def test_a_failed_capture_is_said_and_changes_nothing(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(work: Callable[[], None], device: torch.device) -> Callable[[], object]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(_capturing, "cuda_graph", fails)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 3))
    plain, _ = rounds_of(model, "px")
    with pytest.warns(PathexWarning, match="not captured: RuntimeError: operation not permitted") as said:
        captured = pathex.prune(model, "px", sparsity=0.9, data=torch.randn(5, 3, 32, 32), rounds=5, capture=True)
    assert len(said) == 1
    assert captured.mask.kept == sum(int(kept.sum()) for kept in plain[-1].values())


def test_the_graph_goes_with_the_prune(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def replay(self) -> None: ...

    graphs = []

    def capture(work: Callable[[], None], device: torch.device) -> Callable[[], object]:
        work()
        graph = Graph()
        graphs.append(weakref.ref(graph))
        return graph.replay

    monkeypatch.setattr(_capturing, "cuda_graph", capture)
    rounds_of(nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)), "px", capture=True)
    assert [graph() for graph in graphs] == [None]


NEEDED = {
    "a CUDA device": ("px", {}, "capture=True needs a CUDA device, not 'cpu'; leave it out"),
    "True or False": ("px", {"capture": 1}, "capture must be True or False, not 1"),
    "products too": ("px", {"capture": False, "tf32": True}, "tf32=True needs a CUDA device, not 'cpu'; leave it out"),
    "nor other products": ("px", {"tf32": "yes"}, "tf32 must be True or False, not 'yes'"),
    "shifts": ("synflow", {"shifts": "released"}, "capture=True needs shifts='dropped', not 'released'"),
    "no method without it": ("snip", {}, "method 'snip' has no option 'capture'"),
}


@pytest.mark.parametrize("case", NEEDED)
def test_what_a_capture_needs_is_said(case: str) -> None:
    method, options, message = NEEDED[case]
    with pytest.raises(InvalidInput, match=message):
        pathex.score(nn.Linear(3, 2), method, torch.randn(2, 3), **{"capture": True, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"redraw": True}, "redraw=False: weights are drawn on the CPU"), ({"reuse_gates": 2}, "reuse_gates=1, not 2")],
)
def test_rounds_that_differ_by_more_than_their_mask_are_refused(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathex.scores.Problem.device", torch.device("cuda"))
    reader = pathex.scores.find("px")
    assert reader.reading is not None
    problem = pathex.scores.Problem(nn.Linear(3, 2), {}, [], memo={"sharded": False})
    found = _capturing.obstacle(reader.reader(problem, **{**reader.reading, **options}))  # type: ignore[arg-type]
    assert found == message


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["resnet20", "vgg11_bn", "torchvision:mobilenet_v3_small"])
@pytest.mark.parametrize("method", METHODS)
def test_a_graph_of_a_round_scores_as_the_round_does(method: str, name: str) -> None:
    model = pathex.models.create(name, num_classes=3).cuda()
    _, plain = rounds_of(model, method, **METHODS[method])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "rounds are carried out as written")
        _, captured = rounds_of(model, method, capture=True, **METHODS[method])
    shared = sum(int((plain[name] & captured[name]).sum()) for name in plain)
    assert shared >= 0.99 * plain.kept  # a GPU adds up in another order from time to time
