"""SNIP, iterative SNIP, FORCE and GraSP: in rounds, on transformers, and with negative and tied scores."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathex
import small_timm
from brute_force import gradients
from brute_force.cases import assert_close, random_mask
from brute_force.gradients import TWINS, labelled
from variants import LOSSES

pytestmark = pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")


@pytest.mark.parametrize("temperature", [1.0, 7, 200.0, None])
def test_the_temperature_divides_the_outputs(temperature):
    model, batches = labelled("mlp", 32)
    found = pathex.score(model, "grasp", batches, **({} if temperature is None else {"temperature": temperature}))
    assert_close(found, gradients.grasp(model, batches, temperature=temperature or 200.0))


@pytest.mark.parametrize(("method", "revives"), [("snip", False), ("iterative-snip", False), ("force", True)])
@pytest.mark.parametrize("case", ["dilated", "residual"])
def test_rounds_equal_sorting_by_the_twin(method, revives, case):
    model, batches = labelled(case, 34, (8, 6))  # enough images that no score is zero: ties are drawn otherwise
    start = random_mask(model, 34, 0.9)
    result = pathex.prune(model, method, sparsity=0.6, data=batches, rounds=4, mask=pathex.Mask(start))
    expected = gradients.rounds_by_sorting(
        lambda mask: TWINS[method](model, batches, mask), start, 0.4, rounds=4, revives=revives
    )
    assert all(torch.equal(result.mask[name], keep) for name, keep in expected.items())


TRANSFORMERS = ["vit", "swin"]


def transformer(name):
    """A small transformer in float64 with a head and biases that are not zero."""
    torch.manual_seed(0)
    model = getattr(small_timm, name)().double()
    with torch.no_grad():
        for entry in model.parameters():
            entry.add_(0.1 * torch.randn(entry.shape, dtype=torch.float64))
    x = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    return model, [(x[:4], torch.arange(4) % 3), (x[4:], torch.tensor([2, 1]))]


@pytest.mark.parametrize("temperature", [200.0, 2.0])
@pytest.mark.parametrize("name", ["residual", "average-branch", *TRANSFORMERS])
def test_grasp_is_the_slope_of_the_gradient_norm(name, temperature):
    model, batches = transformer(name) if name in TRANSFORMERS else labelled(name, 36, (4, 3))
    scores = pathex.score(model, "grasp", batches, temperature=temperature)
    assert all(score.isfinite().all() and (score.any() or name not in TRANSFORMERS) for score in scores.values())
    copied = copy.deepcopy(model).train()
    weights = {key: copied.get_parameter(key) for key in scores}

    def half_squared_norm():
        losses = [F.cross_entropy(copied(x) / temperature, y, reduction="sum") for x, y in batches]
        gradient = torch.autograd.grad(sum(losses) / sum(len(y) for _, y in batches), list(weights.values()))
        return 0.5 * sum(float(part.square().sum()) for part in gradient)

    found, expected = [], []
    for key, weight in weights.items():
        flat = weight.detach().view(-1)
        for index in torch.randperm(len(flat))[:2].tolist():
            own, values = float(flat[index]), []
            for step in (1e-6, -1e-6):
                flat[index] = own + step
                values.append(half_squared_norm())
            flat[index] = own
            found.append(float(scores[key].view(-1)[index]))
            expected.append(own * (values[0] - values[1]) / 2e-6)
    # With steps of 1e-6 these are exact to about 1e-8, where no ReLU changes sides; the claim is 1e-5.
    assert found == pytest.approx(expected, abs=1e-5 * max(map(abs, expected)))


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("method", LOSSES)
def test_transformers_are_pruned_in_rounds(name, method):
    model, batches = transformer(name)
    mask = pathex.prune(model.float(), method, sparsity=0.9, data=[(x.float(), y) for x, y in batches], rounds=2).mask
    assert mask.kept == round(0.1 * mask.total)


def test_a_loss_without_curvature_scores_zero():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    scores = pathex.score(model, "grasp", (x, torch.zeros(4, dtype=torch.long)), loss=lambda out, y: out.mean())
    assert not scores["weight"].any()


@pytest.mark.parametrize("least", [0, 2])
def test_thresholds_hold_for_negative_scores(model, images, least):
    data = (images, torch.arange(12) % 3)
    scores = pathex.score(model, "grasp", data)
    negative = sum(int((score < 0).sum()) for score in scores.values())
    total = sum(score.numel() for score in scores.values())
    assert 0.2 < negative / total < 0.8
    for sparsity in (0.1, 0.5, 0.95):
        mask = pathex.prune(model, "grasp", sparsity=sparsity, data=data, min_per_layer=least).mask
        assert mask.kept == round((1 - sparsity) * total)
        assert min(count.kept for count in mask.counts().values()) >= least
        if not least:
            removed = max(float(scores[name][~mask[name]].max()) for name in mask if not mask[name].all())
            assert min(float(scores[name][mask[name]].min()) for name in mask if mask[name].any()) >= removed


def test_zero_scores_stand_between_positive_and_negative_ones_and_ties_are_drawn():
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].bias[:3] = -100.0
    data = (torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3)
    scores = torch.cat([score.flatten() for score in pathex.score(model, "grasp", data).values()])
    positive, zero = int((scores > 0).sum()), int((scores == 0).sum())
    assert zero >= 21 and positive + zero < len(scores)
    kept = []
    for seed in (0, 0, 1):
        mask = pathex.prune(model, "grasp", sparsity=1 - (positive + 5) / len(scores), data=data, seed=seed).mask
        kept.append(torch.cat([entry.flatten() for entry in mask.values()]))
        assert kept[-1][scores > 0].all() and not kept[-1][scores < 0].any() and kept[-1].sum() == positive + 5
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])
