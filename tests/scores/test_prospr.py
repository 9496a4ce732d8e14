"""ProsPr against unrolled training; parts of the pruning set, and what goes wrong."""

import copy

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import Wired, assert_close, random_mask
from brute_force.prospr import prospr
from pathex.errors import InvalidInput, PathexError


def _attended(net, x):
    q, k, v = (part.unsqueeze(1) for part in net.qkv(net.norm(x)).chunk(3, -1))
    mixed = nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)
    return net.head(nn.functional.gelu(x + mixed).mean(1))


NETWORKS = {
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


def problem(name, seed, sizes):
    """A network in float64 and in train mode, and labelled batches of these sizes."""
    torch.manual_seed(seed)
    make, shape = NETWORKS[name]
    images = [torch.randn(size, *shape, dtype=torch.float64) for size in sizes]
    return make().double(), [(x, torch.randint(0, 3, (len(x),))) for x in images]


def score(model, data, **options):
    return pathex.score(model, "prospr", data, **options)


@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize(("steps", "momentum"), [(0, 0.0), (1, 0.0), (3, 0.0), (3, 0.9), (4, 0.5)])
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_the_derivative_of_unrolled_training(name, steps, momentum, pruned):
    for seed in range(3):
        model, data = problem(name, seed, [5, 7, 6, 8, 4][: steps + 1])
        mask = pathex.Mask(random_mask(model, seed, 0.7)) if pruned else None
        found = score(model, data, steps=steps, lr=0.3, momentum=momentum, mask=mask)
        assert_close(found, prospr(model, data, 0.3, momentum, mask), 1e-9)


def test_parts_of_the_pruning_set():
    model, data = problem("perceptron", 7, [4] * 8)
    grouped = [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(data[::2], data[1::2], strict=True)]
    # Without BatchNorm a part of two batches is the batch of both.
    assert_close(score(model, grouped), score(model, data))
    # One batch is every part; with fixed statistics images are cut whatever the batches.
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    repeated, running = score(model, whole), score(model, data, calibration="running")
    assert_close(score(model, whole * 4), repeated)
    assert_close(score(model, whole, calibration="running"), running)
    assert all(not torch.allclose(value, repeated[name], rtol=1e-3) for name, value in running.items())
    single = score(model, [(whole[0][0][:2], whole[0][1][:2])], calibration="running")
    assert all(value.isfinite().all() for value in single.values())


def test_first_order_is_the_gradient_after_training():
    model, data = problem("perceptron", 3, [6] * 4)
    full, first = score(model, data), score(model, data, first_order=True)
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
    model, data = problem("perceptron", 0, [4])
    with pytest.raises(InvalidInput, match="'prospr' needs labels"):
        score(model, data[0][0])
    with pytest.raises(PathexError, match=r"diverges within 3 steps of lr=1e\+200; allowed: a smaller lr"):
        score(model, data, lr=1e200)
