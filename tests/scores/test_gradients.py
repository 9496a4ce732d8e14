"""SNIP, iterative SNIP, FORCE and GraSP: in rounds, on transformers, and with negative and tied scores."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathex
import small_timm
from brute_force import gradients
from brute_force.cases import Wired, assert_close, random_mask
from brute_force.gradients import TWINS, labelled, prospr
from pathex.errors import InvalidInput, PathexError, UnsupportedOperation
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


TWICE = "exact=True differentiates twice, which an operation of the network does not allow"
NEEDS = {
    "grasp": ("grasp needs second derivatives", "; .* once only, one of OnceBackward", {}),
    "prospr": ("prospr needs second derivatives, or first_order=True, .*", "; .* once only, one of OnceBackward", {}),
    "ntk-sap": (TWICE, "", {"exact": True}),
}
DATA = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 2


class Ordinary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


class Once(Ordinary):
    backward = staticmethod(torch.autograd.function.once_differentiable(Ordinary.backward))


def through(function, beside):
    """All of it, or a part of it, goes through a function of its own."""

    def form(net, x):
        hidden = function.apply(net.first(x).tanh())
        return net.last(hidden + x if beside else hidden)

    return Wired(form, first=nn.Linear(3, 3), last=nn.Linear(3, 2))


def scored(model, method, **options):
    return all(
        entry.isfinite().all() and entry.any() for entry in pathex.score(model, method, DATA, **options).values()
    )


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("method", NEEDS)
def test_a_function_that_can_be_differentiated_once_only(method, beside):
    message, reason, options = NEEDS[method]
    assert scored(through(Ordinary, beside), method, **options)
    with pytest.raises(UnsupportedOperation, match=message + reason):
        pathex.score(through(Once, beside), method, DATA, **options)


@pytest.mark.parametrize(
    ("method", "options"), [("snip", {}), ("ntk-sap", {}), ("prospr", {"first_order": True})], ids=str
)
def test_methods_that_need_no_second_derivative(method, options):
    assert all(scored(through(Once, beside), method, **options) for beside in (True, False))


@pytest.mark.parametrize("method", ["grasp", "prospr"])
def test_a_kernel_that_has_a_first_derivative_only(method):
    def form(net, x):
        tokens = net.first(x).view(len(x), 1, 4, 2)
        attended = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(tokens, tokens, tokens)[0]
        return net.last(attended.flatten(1))

    model = Wired(form, first=nn.Linear(3, 8), last=nn.Linear(8, 2))
    assert scored(model, "snip")
    with pytest.raises(UnsupportedOperation, match=NEEDS[method][0] + ": .*attention.*not implemented"):
        pathex.score(model, method, DATA)


def _attended(net, x):
    q, k, v = (part.unsqueeze(1) for part in net.qkv(net.norm(x)).chunk(3, -1))
    mixed = nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)
    return net.head(nn.functional.gelu(x + mixed).mean(1))


TRAINED = {
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        (4,),
    ),
    "convolutional": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 4, 3, groups=2)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        ),
        (2, 6, 6),
    ),
    "attention": (
        lambda: Wired(_attended, norm=nn.LayerNorm(4), qkv=nn.Linear(4, 12), head=nn.Linear(4, 3)),
        (5, 4),
    ),
}


def problem_of(name, seed, sizes):
    """A network in float64 and in train mode, and labelled batches of these sizes."""
    torch.manual_seed(seed)
    make, shape = TRAINED[name]
    images = [torch.randn(size, *shape, dtype=torch.float64) for size in sizes]
    return make().double(), [(x, torch.randint(0, 3, (len(x),))) for x in images]


def by_training(model, data, **options):
    return pathex.score(model, "prospr", data, **options)


@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize(("steps", "momentum"), [(0, 0.0), (1, 0.0), (3, 0.0), (3, 0.9), (4, 0.5)])
@pytest.mark.parametrize("name", TRAINED)
def test_scores_are_the_derivative_of_unrolled_training(name, steps, momentum, pruned):
    for seed in range(3):
        model, data = problem_of(name, seed, [5, 7, 6, 8, 4][: steps + 1])
        mask = pathex.Mask(random_mask(model, seed, 0.7)) if pruned else None
        found = by_training(model, data, steps=steps, lr=0.3, momentum=momentum, mask=mask)
        assert_close(found, prospr(model, data, 0.3, momentum, mask), 1e-9)


def test_parts_of_the_pruning_set():
    model, data = problem_of("perceptron", 7, [4] * 8)
    grouped = [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(data[::2], data[1::2], strict=True)]
    # Without BatchNorm a part of two batches is the batch of both.
    assert_close(by_training(model, grouped), by_training(model, data))
    # One batch is every part; with fixed statistics images are cut whatever the batches.
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    repeated, running = by_training(model, whole), by_training(model, data, calibration="running")
    assert_close(by_training(model, whole * 4), repeated)
    assert_close(by_training(model, whole, calibration="running"), running)
    assert all(not torch.allclose(value, repeated[name], rtol=1e-3) for name, value in running.items())
    single = by_training(model, [(whole[0][0][:2], whole[0][1][:2])], calibration="running")
    assert all(value.isfinite().all() for value in single.values())


def test_first_order_is_the_gradient_after_training():
    model, data = problem_of("perceptron", 3, [6] * 4)
    full, first = by_training(model, data), by_training(model, data, first_order=True)
    trained = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    for number, (x, y) in enumerate(data):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(x), y).backward()
        if number < 3:
            optimizer.step()
    assert_close(first, {n: (model.get_parameter(n) * trained.get_parameter(n).grad).abs().detach() for n in first})
    assert all(not torch.allclose(value, full[name], rtol=1e-3) for name, value in first.items())


def test_missing_labels_and_divergence():
    model, data = problem_of("perceptron", 0, [4])
    with pytest.raises(InvalidInput, match="'prospr' needs labels"):
        by_training(model, data[0][0])
    with pytest.raises(PathexError, match=r"diverges within 3 steps of lr=1e\+200; allowed: a smaller lr"):
        by_training(model, data, lr=1e200)
