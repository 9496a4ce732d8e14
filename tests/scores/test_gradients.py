"""SNIP, iterative SNIP, FORCE, GraSP and ProsPr: what they read, in rounds, on transformers, and what they refuse."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pathex
import small_timm
from brute_force import gradients
from brute_force.cases import Wired, assert_close, perceptron, random_mask
from brute_force.gradients import TWINS, labelled, prospr
from pathex.errors import InvalidInput, PathexError, UnknownName, UnsupportedOperation
from snapshots import unchanged
from variants import LOSSES

pytestmark = pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
every_method = pytest.mark.parametrize("method", LOSSES)


@every_method
def test_on_batch_statistics_the_batches_count_but_not_their_order(model, images, method):
    labels = torch.arange(12) % 3
    halves = list(zip(images.split(6), labels.split(6), strict=True))
    first = pathex.score(model, method, halves)
    assert_close(pathex.score(model, method, halves[::-1]), first)
    assert_close(pathex.score(model, method, [(x.flip(0), y.flip(0)) for x, y in halves]), first)
    whole = pathex.score(model, method, (images, labels))
    assert any(not torch.allclose(whole[name], score, rtol=1e-3) for name, score in first.items())


@every_method
def test_pixels_without_a_class_do_not_count(method):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).double()
    x, y = torch.randn(4, 2, 5, 5, dtype=torch.float64), torch.randint(0, 3, (4, 5, 5))
    y[0, 2:], y[1] = 255, 255
    whole = pathex.score(model, method, (x, y))
    parts = pathex.score(model, method, list(zip(x.split(1), y.split(1), strict=True)))
    assert_close(parts, whole)
    logs = model(x).log_softmax(1)
    torch.stack([logs[n, y[n, i, j], i, j] for n, i, j in (y != 255).nonzero().tolist()]).mean().backward()
    if method != "grasp":
        factors = {n: p.grad if method == "iterative-grasp" else p.detach() for n, p in model.named_parameters()}
        gradients = {n: p.grad for n, p in model.named_parameters() if "weight" in n}
        assert_close(whole, {name: (factors[name] * gradient).abs() for name, gradient in gradients.items()})
    with pytest.raises(InvalidInput, match="no label stands for a class"):
        pathex.score(model, method, (x, torch.full_like(y, 255)))


def test_fisher_taylor_takes_means_over_pixels_with_a_class():
    model = nn.Sequential(nn.Conv2d(2, 3, 1)).double()
    x, y = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.randint(0, 3, (3, 4, 4))
    y[0, 1:], y[1] = 255, 255
    weight = model[0].weight

    def slope(rows):
        loss = F.cross_entropy(model(x[rows]), y[rows], ignore_index=255)
        return torch.autograd.grad(loss, weight)[0]

    squares = (slope([0]).square() + slope([2]).square()) / 2
    found = pathex.score(model, "fisher-taylor", (x, y))
    assert_close(found, {"0.weight": (weight * slope([0, 1, 2]) + weight**2 * squares / 2).abs().detach()})


@pytest.mark.parametrize("method", [*LOSSES, "prospr", "fisher-diagonal"])
def test_maps_of_labels_outside_the_classes_are_refused(method):
    model, x, y = nn.Sequential(nn.Conv2d(2, 3, 1)), torch.randn(4, 2, 3, 3), torch.full((4, 3, 3), 2)
    y[2, 1, 2] = 3
    with pytest.raises(InvalidInput, match="label 3 is no class of an output with 3 classes"):
        pathex.score(model, method, (x, y))
    with pytest.raises(InvalidInput, match=r"labels \([14],\) .* do not fit outputs"):
        pathex.score(model, method, (x, y[:, 0, 0]))


@pytest.mark.parametrize("method", [*LOSSES, "fisher-diagonal"])
def test_labels_come_as_numbers_probabilities_or_with_their_own_loss(method):
    model, [(x, y)] = labelled("mlp", 38, (6,))
    expected = pathex.score(model, method, (x, y))
    for labels in (y.double(), y.to(torch.uint8), F.one_hot(y, 2).double()):
        assert_close(pathex.score(model, method, [(x, labels)]), expected)
    if method == "fisher-diagonal":
        return
    own = pathex.score(model, method, (x, y), loss=F.cross_entropy)
    assert_close(own, expected)
    squared = pathex.score(model, method, (x, y), loss=lambda out, labels: (out[:, 0] - labels).square().mean())
    assert any(not torch.allclose(squared[name], score) for name, score in expected.items())


@every_method
def test_redrawn_weights_are_those_that_are_scored(method):
    model, batches = labelled("mlp", 40)
    drawn = copy.deepcopy(model)
    keep = random_mask(model, 40)

    def redraw(name, weight, source):
        entry = torch.randn(weight.shape, generator=source, dtype=weight.dtype)
        drawn.get_parameter(name).data.copy_(entry)
        return entry

    found = pathex.score(model, method, batches, mask=pathex.Mask(keep), redraw=redraw, seed=5)
    assert_close(found, TWINS[method](drawn, batches, keep))


X, Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])
BAD = {
    "no labels": ({"data": X}, r"method '{method}' needs labels: data must deliver \(x, y\)"),
    "a batch without labels": ({"data": [(X, Y), X]}, "method '{method}' needs labels"),
    "label too large": ({"data": (X, Y + 1)}, r"label 2 is no class of an output with 2 classes \(0 to 1\)"),
    "negative label": ({"data": (X, Y - 1)}, "label -1 is no class"),
    "labels of another shape": (
        {"data": (X, Y[:, None])},
        r"labels \(4, 1\) of torch.int64 do not fit outputs \(4, 2\)",
    ),
    "fractions of classes": ({"data": [(X, Y + 0.5)]}, r"labels \(4,\) of torch.float32 do not fit .* probabilities"),
    "probabilities of other classes": ({"data": [(X, torch.rand(4, 3))]}, r"\(4, 3\) of torch.float32 do not fit"),
    "a single value a channel": (
        {"data": [(X[:3], Y[:3]), (X[3:], Y[3:])]},
        "BatchNorm .* larger batches, or a calibration that",
    ),
    "unknown calibration": ({"calibration": "eval"}, "unknown calibration 'eval'. Known: batch, running, train"),
    "a loss for each image": ({"loss": partial(F.cross_entropy, reduction="none")}, "loss must return one number"),
    "unknown loss": ({"loss": "mae"}, "loss must be cross-entropy, bce, mse, or a function .* not 'mae'"),
    "unknown option": ({"temprature": 3}, "'{method}': 'temprature'.* Known: calibration"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("method", [*LOSSES, "prospr"])
def test_bad_input_is_named(method, case):
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).train()
    arguments, message = BAD[case]
    with unchanged(model), pytest.raises((InvalidInput, UnknownName), match=message.format(method=method)):
        pathex.score(model, method, **{"data": (X, Y), **arguments})


@pytest.mark.parametrize("method", ["snip", "grasp", "ntk-diagonal"])
def test_checkpoints_would_run_again_without_the_mask_and_paths_run_through_them(method):
    layers = {"first": nn.Linear(3, 8), "second": nn.Linear(8, 8), "fc": nn.Linear(8, 2)}
    model = Wired(lambda net, x: net.fc(checkpoint(net.second, net.first(x).relu(), use_reentrant=False)), **layers)
    with pytest.raises(UnsupportedOperation, match="switch gradient checkpointing off"):
        pathex.score(model, method, (X, Y))
    pathex.score(model, "magnitude", (X, Y))
    plain = nn.Sequential(model.first, nn.ReLU(), model.second, model.fc)
    found, expected = (list(pathex.score(network, "px", X).values()) for network in (model, plain))
    torch.testing.assert_close(found, expected)


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


@pytest.mark.parametrize("temperature", [200.0, 2])
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
@every_method
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


SECOND = {
    "grasp": "grasp needs second derivatives",
    "prospr": "prospr needs second derivatives, or first_order=True, .*",
}
ONCE = [
    *((method, {}, f"{words}; .* once only, one of OnceBackward") for method, words in SECOND.items()),
    ("ntk-sap", {"exact": True}, "exact=True differentiates twice, which an operation of the network does not allow"),
    ("snip", {}, None),
    ("ntk-sap", {}, None),
    ("prospr", {"first_order": True}, None),
]


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
    found = pathex.score(model, method, (X, Y), **options)
    return all(entry.isfinite().all() and entry.any() for entry in found.values())


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(("method", "options", "message"), ONCE, ids=str)
def test_a_function_that_can_be_differentiated_once_only(method, options, message, beside):
    assert scored(through(Ordinary, beside), method, **options)
    with pytest.raises(UnsupportedOperation, match=message) if message else nullcontext():
        assert scored(through(Once, beside), method, **options)


@pytest.mark.parametrize("method", SECOND)
def test_a_kernel_that_has_a_first_derivative_only(method):
    def form(net, x):
        tokens = net.first(x).view(len(x), 1, 4, 2)
        attended = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(tokens, tokens, tokens)[0]
        return net.last(attended.flatten(1))

    model = Wired(form, first=nn.Linear(3, 8), last=nn.Linear(8, 2))
    assert scored(model, "snip")
    with pytest.raises(UnsupportedOperation, match=SECOND[method] + ": .*attention.*not implemented"):
        pathex.score(model, method, (X, Y))


def _attended(net, x):
    q, k, v = (part.unsqueeze(1) for part in net.qkv(net.norm(x)).chunk(3, -1))
    mixed = nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)
    return net.head(nn.functional.gelu(x + mixed).mean(1))


def _convolutional():
    body = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 4, 3, groups=2)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


TRAINED = {
    "perceptron": (partial(perceptron, 4, 6, 5, 3), (4,)),
    "convolutional": (_convolutional, (2, 6, 6)),
    "attention": (partial(Wired, _attended, norm=nn.LayerNorm(4), qkv=nn.Linear(4, 12), head=nn.Linear(4, 3)), (5, 4)),
}


def problem_of(name, seed, sizes):
    """A network in float64 and in train mode, and labelled batches of these sizes."""
    torch.manual_seed(seed)
    make, shape = TRAINED[name]
    images = [torch.randn(size, *shape, dtype=torch.float64) for size in sizes]
    return make().double(), [(x, torch.randint(0, 3, (len(x),))) for x in images]


by_training = partial(pathex.score, method="prospr")


@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize(("steps", "momentum"), [(0, 0.0), (1, 0.0), (3, 0.0), (3, 0.9), (4, 0.5)])
@pytest.mark.parametrize("name", TRAINED)
def test_scores_are_the_derivative_of_unrolled_training(name, steps, momentum, pruned):
    for seed in range(3):
        model, data = problem_of(name, seed, [5, 7, 6, 8, 4][: steps + 1])
        mask = pathex.Mask(random_mask(model, seed, 0.7)) if pruned else None
        found = by_training(model, data=data, steps=steps, lr=0.3, momentum=momentum, mask=mask)
        assert_close(found, prospr(model, data, 0.3, momentum, mask), 1e-9)


def test_parts_of_the_pruning_set():
    model, data = problem_of("perceptron", 7, [4] * 8)
    grouped = [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(data[::2], data[1::2], strict=True)]
    # Without BatchNorm a part of two batches is the batch of both.
    assert_close(by_training(model, data=grouped), by_training(model, data=data))
    # One batch is every part; with fixed statistics images are cut whatever the batches.
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    repeated, running = by_training(model, data=whole), by_training(model, data=data, calibration="running")
    assert_close(by_training(model, data=whole * 4), repeated)
    assert_close(by_training(model, data=whole, calibration="running"), running)
    assert all(not torch.allclose(value, repeated[name], rtol=1e-3) for name, value in running.items())
    single = by_training(model, data=[(whole[0][0][:2], whole[0][1][:2])], calibration="running")
    assert all(value.isfinite().all() for value in single.values())


def test_first_order_is_the_gradient_after_training():
    model, data = problem_of("perceptron", 3, [6] * 4)
    full, first = by_training(model, data=data), by_training(model, data=data, first_order=True)
    trained = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    for number, (x, y) in enumerate(data):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(x), y).backward()
        if number < 3:
            optimizer.step()
    assert_close(first, {n: (model.get_parameter(n) * trained.get_parameter(n).grad).abs().detach() for n in first})
    assert all(not torch.allclose(value, full[name], rtol=1e-3) for name, value in first.items())


def test_training_that_diverges():
    model, data = problem_of("perceptron", 0, [4])
    with pytest.raises(PathexError, match=r"diverges within 3 steps of lr=1e\+200; allowed: a smaller lr"):
        by_training(model, data=data, lr=1e200)
