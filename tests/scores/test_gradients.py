"""SNIP, iterative SNIP, FORCE and GraSP: against central differences, in rounds, and on networks at large."""

import copy
from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pathex
import small_timm
from brute_force import gradients
from brute_force.cases import assert_close, prunable, random_mask
from brute_force.gradients import TWINS, Batches, labelled
from variants import LOSSES

every_method = pytest.mark.parametrize("method", LOSSES)


@pytest.mark.parametrize("temperature", [1.0, 7, 200.0])
def test_the_temperature_divides_the_outputs(temperature: float) -> None:
    model, batches = labelled("mlp", 32)
    found = pathex.score(model, "grasp", batches, temperature=temperature)
    assert_close(found, gradients.grasp(model, batches, temperature=temperature))


def test_the_default_temperature_is_200_and_it_matters() -> None:
    model, batches = labelled("mlp", 33)
    default, released, one = (pathex.score(model, "grasp", batches, **o) for o in ({}, {"temperature": 200}, {"temperature": 1}))  # fmt: skip  # noqa: E501
    assert all(torch.equal(default[name], released[name]) for name in default)
    flat = [torch.cat([score.flatten() for score in scores.values()]) for scores in (default, one)]
    assert torch.corrcoef(torch.stack(flat))[0, 1] < 0.9999


@pytest.mark.parametrize(("method", "revives"), [("snip", False), ("iterative-snip", False), ("force", True)])
@pytest.mark.parametrize("case", ["dilated", "residual"])
@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_rounds_equal_sorting_by_the_twin(method: str, revives: bool, case: str) -> None:
    model, batches = labelled(case, 34, (8, 6))  # enough images that no score is zero: ties are drawn otherwise
    start = random_mask(model, 34, 0.9)
    result = pathex.prune(model, method, sparsity=0.6, data=batches, rounds=4, mask=pathex.Mask(start))
    expected = gradients.rounds_by_sorting(
        lambda mask: TWINS[method](model, batches, mask), start, 0.4, rounds=4, revives=revives
    )
    assert all(torch.equal(result.mask[name], keep) for name, keep in expected.items())


# -- central differences -----------------------------------------------------------------------------------------------


def plain_loss(model: nn.Module, batches: Batches, temperature: float = 1.0) -> Tensor:
    """The loss that a training step would see, over all batches."""
    outputs = [(model(x) / temperature, y) for x, y in batches]
    total = torch.stack([F.cross_entropy(out, y, reduction="sum") for out, y in outputs]).sum()
    return total / sum(len(y) for _, y in batches)


def gradient_norm(model: nn.Module, batches: Batches, names: list[str], temperature: float) -> float:
    """Half the squared norm of the gradient with respect to the prunable weights."""
    weights = [model.get_parameter(name) for name in names]
    grads = torch.autograd.grad(plain_loss(model, batches, temperature), weights)
    return 0.5 * sum(float(grad.square().sum()) for grad in grads)


def central_difference(model: nn.Module, name: str, index: int, step: float, value: Callable[[], float]) -> float:
    """The derivative of a value in one entry of a parameter."""
    entry = model.get_parameter(name).detach().view(-1)
    own, values = float(entry[index]), []
    for sign in (1, -1):
        entry[index] = own + sign * step
        values.append(value())
    entry[index] = own
    return (values[0] - values[1]) / (2 * step)


def chosen(model: nn.Module, names: Iterable[str], count: int, seed: int) -> list[tuple[str, int]]:
    """Some entries of every named weight."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {name: model.get_parameter(name).numel() for name in names}
    return [(n, i) for n, size in sizes.items() for i in torch.randperm(size, generator=generator)[:count].tolist()]


def assert_near(found: list[float], expected: list[float]) -> None:
    scale = max(abs(value) for value in expected)
    assert scale > 0
    # Central differences with steps of 1e-6 are exact to about 1e-8, where no ReLU changes sides; the claim is 1e-5.
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-5 * scale


@pytest.mark.parametrize("case", ["mlp", "vector-norm", "residual", "average-branch"])
@pytest.mark.filterwarnings("ignore:all scores are zero:pathex.errors.PathexWarning")
def test_snip_and_force_are_derivatives_of_the_loss_in_the_mask(case: str) -> None:
    model, batches = labelled(case, 35, (4, 3))
    keep, entries = random_mask(model, 35, 0.7), chosen(model, prunable(model), 6, 35)
    own = {name: model.get_parameter(name).detach().clone() for name in keep}
    scores = {m: pathex.score(model, m, batches, mask=pathex.Mask(keep)) for m in ("snip", "force")}
    copied = copy.deepcopy(model).train()
    with torch.no_grad():
        for name, entry in keep.items():
            copied.get_parameter(name).mul_(entry)
    expected: dict[str, list[float]] = {"snip": [], "force": []}
    for name, index in entries:
        # A step in the mask is a step in the weight, of the weight's own size.
        slope = central_difference(copied, name, index, 1e-6, lambda: plain_loss(copied, batches).item())
        expected["force"].append(abs(slope * float(own[name].view(-1)[index])))
        expected["snip"].append(expected["force"][-1] * float(keep[name].view(-1)[index]))
    for method, values in expected.items():
        assert_near([float(scores[method][name].view(-1)[index]) for name, index in entries], values)


@pytest.mark.parametrize("case", ["mlp", "vector-norm", "residual", "average-branch"])
@pytest.mark.parametrize("temperature", [200.0, 2.0])
def test_grasp_is_the_slope_of_the_gradient_norm(case: str, temperature: float) -> None:
    model, batches = labelled(case, 36, (4, 3))
    scores = pathex.score(model, "grasp", batches, temperature=temperature)
    assert_grasp_is_the_slope(model, batches, scores, temperature, 6)


def assert_grasp_is_the_slope(
    model: nn.Module, batches: Batches, scores: Mapping[str, Tensor], temperature: float, count: int
) -> None:
    copied, entries = copy.deepcopy(model).train(), chosen(model, scores, count, 36)
    norm: Callable[[], float] = lambda: gradient_norm(copied, batches, list(scores), temperature)  # noqa: E731
    expected = [
        central_difference(copied, name, index, 1e-6, norm) * model.get_parameter(name).detach().view(-1)[index].item()
        for name, index in entries
    ]
    assert_near([float(scores[name].view(-1)[index]) for name, index in entries], expected)


# -- attention and other networks --------------------------------------------------------------------------------------


TRANSFORMERS = {"vit": small_timm.vit, "swin": small_timm.swin}


def transformer(kind: str) -> tuple[nn.Module, Batches]:
    """A small transformer in float64 with a head and biases that are not zero."""
    torch.manual_seed(0)
    model = TRANSFORMERS[kind]().double()
    generator = torch.Generator().manual_seed(37)
    with torch.no_grad():
        for entry in model.parameters():
            entry.add_(0.1 * torch.randn(entry.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(6, 3, 16, 16, generator=generator, dtype=torch.float64)
    return model, [(x[:4], torch.arange(4) % 3), (x[4:], torch.tensor([2, 1]))]


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_grasp_works_through_attention(kind: str) -> None:
    model, batches = transformer(kind)
    scores = pathex.score(model, "grasp", batches)
    assert all(score.isfinite().all() and score.any() for score in scores.values())
    assert_grasp_is_the_slope(model, batches, scores, 200.0, 2)


@pytest.mark.parametrize("kind", TRANSFORMERS)
@every_method
@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_transformers_are_pruned_in_rounds(kind: str, method: str) -> None:
    model, batches = transformer(kind)
    mask = pathex.prune(model.float(), method, sparsity=0.9, data=[(x.float(), y) for x, y in batches], rounds=2).mask
    assert mask.kept == round(0.1 * mask.total)


@pytest.mark.filterwarnings("ignore:all scores are zero:pathex.errors.PathexWarning")
def test_a_loss_without_curvature_scores_zero() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    scores = pathex.score(model, "grasp", (x, torch.zeros(4, dtype=torch.long)), loss=lambda out, y: out.mean())
    assert not scores["weight"].any()


# -- thresholds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [0, 2])
@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_thresholds_hold_for_negative_scores(model: nn.Module, images: Tensor, least: int) -> None:
    data = (images, torch.arange(12) % 3)
    scores = pathex.score(model, "grasp", data)
    negative = sum(int((score < 0).sum()) for score in scores.values())
    total = sum(score.numel() for score in scores.values())
    assert 0.2 < negative / total < 0.8
    for sparsity in (0.1, 0.5, 0.95):
        mask = pathex.prune(model, "grasp", sparsity=sparsity, data=data, min_per_layer=least).mask
        assert mask.kept == round((1 - sparsity) * total)
        assert min(count.kept for count in mask.counts().values()) >= least
        free = [name for name, count in mask.counts().items() if count.kept > least]
        if not least:
            removed = max(float(scores[name][~mask[name]].max()) for name in mask if not mask[name].all())
            assert min(float(scores[name][mask[name]].min()) for name in free) >= removed


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_zero_scores_stand_between_positive_and_negative_ones_and_ties_are_drawn() -> None:
    """A dead unit has scores of zero: they go before the positive ones and stay before the negative ones."""
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].bias[:3] = -100.0
    data = (torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3)
    scores = torch.cat([score.flatten() for score in pathex.score(model, "grasp", data).values()])
    positive, zero = int((scores > 0).sum()), int((scores == 0).sum())
    assert zero >= 21 and positive + zero < len(scores)
    masks = [
        pathex.prune(model, "grasp", sparsity=1 - (positive + 5) / len(scores), data=data, seed=seed).mask
        for seed in (0, 0, 1)
    ]
    kept = [torch.cat([entry.flatten() for entry in mask.values()]) for mask in masks]
    assert all(
        entry[scores > 0].all() and not entry[scores < 0].any() and entry.sum() == positive + 5 for entry in kept
    )
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])


@every_method
@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_rounds_and_what_returns(model: nn.Module, images: Tensor, method: str) -> None:
    data, steps = (images, torch.arange(12) % 3), []
    start = pathex.prune(model, "random", sparsity=0.2, data=images).mask
    pathex.prune(
        model, method, sparsity=0.9, data=data, rounds=5, mask=start,
        on_round=lambda row, mask: steps.append(mask),
    )  # fmt: skip
    assert all(not (entry & ~start[name]).any() for mask in steps for name, entry in mask.items())
    pairs = zip(steps[1:], steps, strict=False)
    returned = sum(int((entry & ~before[name]).sum()) for mask, before in pairs for name, entry in mask.items())
    assert (returned > 0) == (method == "force")
    assert [mask.kept for mask in steps] == [
        round(start.density * (0.1 / start.density) ** (t / 5) * start.total) for t in range(1, 6)
    ]
