"""What a kernel predicts, against a direct solve and against training written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brute_force import kernels
from brute_force.cases import build, measure, random_mask
from pathex import ntk
from refusals import refused


def data(name, images):
    model, x = build(name, int(torch.randint(1000, ())), images)
    return model.eval(), x, torch.arange(images) % 2


@pytest.mark.parametrize("masked", [False, True])
def test_regression_is_the_direct_solution(masked):
    model, x, y = data("residual", 12)
    mask = random_mask(model, 3, 0.7) if masked else None
    found = ntk.regression(model, (x[:8], y[:8]), (x[8:], y[8:]), mask, ridge=0.01)
    rows = kernels.all_rows(model, x, mask, "running").flatten(0, 1)
    K = rows @ rows.T
    wanted = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)[y[:8]].flatten()
    scale = 0.01 * K[:16, :16].trace() / 16
    by_hand = (K[16:, :16] @ torch.inverse(K[:16, :16] + scale * torch.eye(16)) @ wanted).view(4, 2)
    torch.testing.assert_close(found.outputs, by_hand, rtol=1e-6, atol=1e-8)
    assert float(found) == found.accuracy == float((by_hand.argmax(1) == y[8:]).double().mean())


def test_one_kernel_for_all_outputs_is_their_mean():
    model, x, y = data("mlp", 12)
    found = ntk.regression(model, (x[:8], y[:8]), x[8:], form="trace", ridge=0.1)
    rows = kernels.all_rows(model, x, None, "running")
    K = torch.einsum("akp,bkp->ab", rows, rows) / 2
    scale = 0.1 * K[:8, :8].trace() / 8
    wanted = 2 * F.one_hot(y[:8], 2).double() - 1
    by_hand = K[8:, :8] @ torch.inverse(K[:8, :8] + scale * torch.eye(8)) @ wanted
    torch.testing.assert_close(found.outputs, by_hand, rtol=1e-7, atol=1e-9)
    assert math.isnan(float(found))  # without labels of the test images


def test_regression_finds_what_a_linear_network_can_tell():
    x = torch.randn(60, 4)
    y = (x[:, 0] > 0).long()
    found = ntk.regression(nn.Linear(4, 2).eval(), (x[:40], y[:40]), (x[40:], y[40:]))
    assert float(found) >= 0.8


def shuffled(x, y):
    """What delivers other batches each time that it is read."""
    source = torch.Generator().manual_seed(0)
    return torch.utils.data.DataLoader(list(zip(x, y, strict=True)), 4, shuffle=True, generator=source)


def test_data_are_read_once():
    model, x, y = data("mlp", 12)
    how = {"ridge": 0.1}
    found = ntk.regression(model, shuffled(x[:8], y[:8]), shuffled(x[8:], y[8:]), **how)
    wanted = ntk.regression(model, (x[:8], y[:8]), (x[8:], y[8:]), **how)
    assert float(found) == float(wanted)
    torch.testing.assert_close(found.outputs.sort(0).values, wanted.outputs.sort(0).values)
    losses = [ntk.linearised(model, each, steps=2, lr=0.1) for each in (shuffled(x, y), iter([(x, y)]), (x, y))]
    for each in losses[:2]:
        torch.testing.assert_close(each.linear, losses[2].linear)
        torch.testing.assert_close(each.network, losses[2].network)


def test_one_output_has_no_class():
    x = torch.randn(8, 3)
    y = x[:, :1].sign()
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    found = ntk.regression(model, (x, y), (x, y))
    assert math.isnan(float(found)) and found.outputs.shape == (8, 1)
    assert ntk.linearised(model, (x, y), steps=1, lr=0.01, loss="mse").network[0] > 0
    with refused("loss='cross-entropy' needs two outputs or more, this network has one; allowed: 'mse'"):
        ntk.linearised(model, (x, y), steps=1, lr=0.01)


@pytest.mark.parametrize(("loss", "momentum", "size"), [("mse", 0.0, None), ("cross-entropy", 0.9, 3)])
@pytest.mark.parametrize("mode", ["stored", "calibrated"])
def test_both_trainings_are_those_written_out(loss, momentum, size, mode):
    model, x, y = data("residual", 7)
    mask = random_mask(model, 3, 0.7)
    how = {"steps": 5, "lr": 1e-4, "momentum": momentum, "batch_size": size, "loss": loss, "seed": 1}
    found = ntk.linearised(model, (x, y), mask, batch_norm=mode, **how)
    losses = {"mse": lambda out, rows: F.mse_loss(out, 2 * F.one_hot(y[rows], 2).double() - 1)}
    losses["cross-entropy"] = lambda out, rows: F.cross_entropy(out, y[rows])
    keep = {name: mask.get(name, torch.tensor(True)) for name, _ in model.named_parameters()}
    real = kernels.network(model, x, mask, {"stored": "running", "calibrated": "batch"}[mode])
    start = {name: (p * keep[name]).detach() for name, p in model.named_parameters()}

    rows_of_all = kernels.all_rows(model, x, mask, {"stored": "running", "calibrated": "batch"}[mode])

    def linear(weights):
        moved = torch.cat([(weights[name] - start[name]).flatten() for name in start])
        return real(start).detach() + rows_of_all @ moved

    for network, seen in ((real, found.network), (linear, found.linear)):
        weights = {name: w.clone().requires_grad_() for name, w in start.items()}
        optimizer = torch.optim.SGD(weights.values(), lr=1e-4, momentum=momentum)
        source, batches = torch.Generator().manual_seed(1), []
        for step in range(6):
            if not batches:
                batches = list(torch.randperm(7, generator=source).split(size or 7))
            rows = batches.pop(0)
            out = network(weights)
            assert losses[loss](out, torch.arange(7)).item() == pytest.approx(float(seen[step]), rel=1e-8)
            optimizer.zero_grad()
            losses[loss](out[rows], rows).backward()
            for name, weight in weights.items():
                weight.grad *= keep[name]
            optimizer.step()


def test_a_small_step_is_linear_and_a_large_one_parts():
    model, x, y = data("max-pool", 10)
    small = ntk.linearised(model, (x, y), steps=10, lr=1e-7)
    large = ntk.linearised(model, (x, y), steps=10, lr=10.0)
    assert small.part() is None
    step = large.part(0.1)
    assert step is not None and step > 0
    apart = (large.network - large.linear).abs() / large.network[0]
    assert apart[step] > 0.1 and (apart[:step] <= 0.1).all()


def test_a_linear_network_never_parts():
    model, x = nn.Linear(3, 2).double(), torch.randn(9, 3, dtype=torch.float64)
    found = ntk.linearised(model, (x, torch.arange(9) % 2), steps=20, lr=0.5, momentum=0.5, batch_size=4)
    torch.testing.assert_close(found.network, found.linear, rtol=1e-9, atol=1e-12)
    assert found.network[-1] < found.network[0]


def test_batch_statistics_train_along():
    model, x, y = data("residual", 6)
    found = ntk.linearised(model, (x, y), steps=2, lr=1e-6, batch_norm="batch")
    measure(model, x)
    expected = F.cross_entropy(model(x), y)
    assert float(found.network[0]) == pytest.approx(expected.item(), rel=1e-9)
    assert float(found.linear[1]) == pytest.approx(float(found.network[1]), rel=1e-5)


def test_wrong_arguments_are_refused_in_one_line():
    model, x, y = data("mlp", 6)
    with refused("ridge must be a positive number, not 0"):
        ntk.regression(model, (x, y), x, ridge=0)
    with refused("unknown form 'classes'.*full, trace"):
        ntk.regression(model, (x, y), x, form="classes")
    with refused("no labels; allowed: class numbers"):
        ntk.regression(model, x, x)
    with refused("unknown loss 'bce'.*cross-entropy, mse"):
        ntk.linearised(model, (x, y), steps=1, lr=1, loss="bce")
    with refused("batch_size must be an integer in 1..6, got 7"):
        ntk.linearised(model, (x, y), steps=1, lr=1, batch_size=7)
    with refused("steps must be a positive integer, got 0"):
        ntk.linearised(model, (x, y), steps=0, lr=1)
    norm, x = build("residual", 1, images=6)
    with refused("batch_size with batch_norm='batch' would change the kernel"):
        ntk.linearised(norm, (x, y), steps=1, lr=1, batch_size=3, batch_norm="batch")
    with refused("batch_norm='batch' couples the images of one set"):
        ntk.regression(norm, (x, y), x, batch_norm="batch")
