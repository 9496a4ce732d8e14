"""Re-used gates, against a twin that records with the weights of an earlier round and replays with the present ones."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pathex
from brute_force import scores as twins
from brute_force.cases import build, prunable
from pathex.masks import Mask
from pathex.paths import calibrate, record, replay
from pathex.pruning import _method_call, _scored
from pathex.runs import RunConfig, run
from pathex.scores import Problem, read_batches

# A budget of one byte is doubted, and takes images one at a time.
pytestmark = pytest.mark.filterwarnings("ignore:.* of memory, more than:pathex.errors.PathexWarning")
METHODS = ["px", "px-literal"]
TWINS: dict[str, Callable[..., dict[str, Tensor]]] = {"px": twins.reused_px, "px-literal": twins.reused_px_literal}
CASES = ["mlp", "dilated", "residual", "max-pool", "average-branch"]
Keep = dict[str, Tensor]


def falling(model: nn.Module, rounds: int) -> list[Keep]:
    """A mask for every round, each inside the one before it; the first is all weights."""
    masks = [{name: torch.ones(model.get_parameter(name).shape, dtype=torch.bool) for name in prunable(model)}]
    for _ in range(1, rounds):
        masks.append({name: keep & (torch.rand(keep.shape) > 0.1) for name, keep in masks[-1].items()})
    return masks


def in_rounds(model: nn.Module, x: Tensor, masks: list[Keep], method: str, **options: Any) -> list[dict[str, Tensor]]:
    """The scores of successive rounds of one prune, whose masks are given."""
    memory = options.pop("memory", None)
    call, memo = _method_call(method, options), {}
    weights = {name: model.get_parameter(name) for name in prunable(model)}
    batches = read_batches(x)
    return [
        _scored(Problem(model, weights, batches, Mask(mask), round=number, memory=memory, memo=memo), call)
        for number, mask in enumerate(masks, 1)
    ]


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-9) -> None:
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=rtol, atol=1e-2 * rtol * float(score.abs().max()))


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("calibration", ["batch", "running"])
def test_gates_are_those_of_the_last_recorded_round(case: str, method: str, calibration: str) -> None:
    torch.manual_seed(0)
    model, x = build(case, 27, 4)
    masks = falling(model, 5)
    found = in_rounds(model, x, masks, method, reuse_gates=2, calibration=calibration)
    for number, score in enumerate(found):
        recorded = masks[number - number % 2]
        assert_equal(score, TWINS[method](model, x, masks[number], recorded, calibration))


@pytest.fixture
def network() -> tuple[nn.Module, Tensor, list[Keep]]:
    torch.manual_seed(3)
    model = pathex.models.CifarResNet(8, num_classes=3, width=2).double()
    return model, torch.randn(7, 3, 8, 8, dtype=torch.float64), falling(model, 5)


@pytest.mark.parametrize("method", METHODS)
def test_fresh_gates_differ_and_those_of_the_recorded_rounds_do_not(
    network: tuple[nn.Module, Tensor, list[Keep]], method: str
) -> None:
    fresh, reused = (in_rounds(*network, method, reuse_gates=every) for every in (1, 2))
    for number, (one, other) in enumerate(zip(fresh, reused, strict=True)):
        same = all(torch.allclose(one[name], other[name], rtol=1e-9, atol=0) for name in one)
        assert same == (number % 2 == 0)


@pytest.mark.parametrize(
    "options", [{}, {"calibration_images": 3}, {"redraw": True}, {"calibration": "running"}], ids=str
)
@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_give_the_same(
    network: tuple[nn.Module, Tensor, list[Keep]], method: str, options: dict[str, Any]
) -> None:
    whole, parts = (in_rounds(*network, method, reuse_gates=3, memory=memory, **options) for memory in (None, 1))
    for one, other in zip(whole, parts, strict=True):
        assert_equal(one, other)


def test_memory_that_becomes_scarce_does_not_matter(
    network: tuple[nn.Module, Tensor, list[Keep]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free on a GPU changes from round to round: gates kept of all images are then recorded again in parts."""
    expected = in_rounds(*network, "px", reuse_gates=5)
    free = iter([2**30, 2**30, 1, 2**30, 1])
    of_round: dict[int, int] = {}
    monkeypatch.setattr(Problem, "budget", lambda self: of_round.setdefault(self.round, next(free, 1)))
    for one, other in zip(in_rounds(*network, "px", reuse_gates=5), expected, strict=True):
        assert_equal(one, other)


def test_gates_are_recorded_once_where_all_images_fit(
    network: tuple[nn.Module, Tensor, list[Keep]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[int] = []
    calibrated: list[int] = []
    for name, function, seen in (("record", record, recorded), ("calibrate", calibrate, calibrated)):

        def spied(model: nn.Module, x: Tensor, function: Any = function, seen: Any = seen, **how: Any) -> Any:
            seen.append(len(x))
            return function(model, x, **how)

        monkeypatch.setattr(f"pathex.scores._reader.{name}", spied)
    in_rounds(*network, "px", reuse_gates=3)
    assert recorded == [7, 7] and not calibrated
    recorded.clear()
    in_rounds(*network, "px", reuse_gates=3, calibration_images=4)
    assert recorded == [7, 7] and calibrated == [4, 4]


def test_redrawn_weights_are_those_of_each_round_and_their_gates_of_the_recorded_one(
    network: tuple[nn.Module, Tensor, list[Keep]],
) -> None:
    model, x, masks = network
    draws: dict[str, list[Tensor]] = {name: [] for name in masks[0]}

    def draw(name: str, weight: Tensor, source: torch.Generator) -> Tensor:
        draws[name].append(torch.randn(weight.shape, dtype=torch.float64, generator=source))
        return draws[name][-1]

    found = in_rounds(model, x, masks, "px", reuse_gates=3, redraw=draw)
    for number, score in enumerate(found):
        first, now = ({name: draws[name][r] * masks[r][name] for name in draws} for r in (number - number % 3, number))
        leaves = {name: weight.requires_grad_() for name, weight in now.items()}
        out = replay(model, x**2, record(model, x, tensors=first), tensors=leaves).sum()
        grads = torch.autograd.grad(out, list(leaves.values()))
        assert_equal(score, {n: leaf.detach() * g / 2 for (n, leaf), g in zip(leaves.items(), grads, strict=True)})


def test_scores_that_leave_float32_are_computed_in_float64_with_the_same_gates() -> None:
    torch.manual_seed(4)
    layers = [layer for _ in range(6) for layer in (nn.Linear(6, 6, bias=False), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(6, 2, bias=False))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1e-4)
    x, masks = torch.rand(5, 6) + 0.5, falling(model, 4)
    wide = copy.deepcopy(model).double()
    for one, other in zip(
        in_rounds(model, x, masks, "px", reuse_gates=3),
        in_rounds(wide, x.double(), masks, "px", reuse_gates=3),
        strict=True,
    ):
        assert all(score.dtype == torch.float64 for score in one.values())
        assert_equal(one, other)


def test_prune_re_uses_gates(network: tuple[nn.Module, Tensor, list[Keep]]) -> None:
    model, x, _ = network
    how: dict[str, Any] = {"sparsity": 0.8, "data": x, "rounds": 6, "progress": False}
    fresh, one, three = (
        pathex.prune(model, "px", **how, **options) for options in ({}, {"reuse_gates": 1}, {"reuse_gates": 3})
    )
    assert all(torch.equal(fresh.mask[name], one.mask[name]) for name in fresh.mask)
    assert any(not torch.equal(fresh.mask[name], three.mask[name]) for name in fresh.mask)
    assert three.mask.kept == fresh.mask.kept


def test_a_wrong_value_is_refused_in_a_run(tmp_path: Any) -> None:
    settings: dict[str, Any] = {"sanity": False, "out": str(tmp_path / "runs"), "data": "fashion-mini"}
    with pytest.raises(pathex.errors.InvalidInput, match="reuse_gates is 2 with schedule 'adaptive'"):
        run(RunConfig(**settings, schedule="adaptive", method_options={"reuse_gates": 2}))
    with pytest.raises(pathex.errors.InvalidInput, match="method 'synflow' has no option 'reuse_gates'"):
        run(RunConfig(**settings, method="synflow", method_options={"reuse_gates": 2}))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("value", "shown"), [("0", "0"), ("many", "'many'"), ("1.5", "1.5")])
def test_the_command_line_refuses_in_one_line(
    value: str, shown: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from pathex.cli import main

    out = tmp_path / "mask.safetensors"
    words = ["prune", "--model", "resnet20", "--data", "fashion-mini", "--sparsity", "0.5", "--out", str(out)]
    assert main([*words, "--method-options.reuse_gates", value]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and f"reuse_gates must be an integer of at least 1, not {shown}" in said[0]
    assert not out.exists()
