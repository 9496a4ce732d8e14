"""ProsPr against unrolled training; parts of the pruning set, masks, attention and bad options."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from brute_force import prospr as twin
from brute_force.cases import Wired
from pathex.errors import InvalidInput, PathexError
from pathex.masks import Mask, prunable_weights
from pathex.scores import Problem, ProsPr, read_batches


def score(model: nn.Module, data: Any, **options: Any) -> dict[str, Tensor]:
    keep = options.pop("mask", None)
    problem = Problem(model, prunable_weights(model), read_batches(data), None if keep is None else Mask(keep))
    return ProsPr(**options)(problem)


def perceptron(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def labelled(
    seed: int, sizes: list[int], shape: tuple[int, ...] = (4,), classes: int = 3
) -> list[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(seed)
    draws = [torch.randn(n, *shape, generator=source, dtype=torch.float64) for n in sizes]
    return [(x, torch.randint(0, classes, (len(x),), generator=source)) for x in draws]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("steps", "momentum"), [(0, 0.0), (1, 0.0), (3, 0.0), (3, 0.9), (4, 0.5)])
@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "masked"])
def test_perceptron_by_complex_steps(seed: int, steps: int, momentum: float, pruned: bool) -> None:
    model, data = perceptron(seed), labelled(seed, [5, 7, 6, 8, 4][: steps + 1])
    names = [name for name in dict(model.named_parameters()) if name.endswith("weight")]
    source = torch.Generator().manual_seed(seed)
    keep = {n: torch.rand(model.get_parameter(n).shape, generator=source) < 0.7 for n in names} if pruned else None
    actual = score(model, data, steps=steps, lr=0.3, momentum=momentum, mask=keep)
    masks = [np.ones(model.get_parameter(n).shape) if keep is None else keep[n].numpy().astype(float) for n in names]
    parts = [(x.numpy(), y.numpy()) for x, y in data]
    expected = twin.perceptron([p.detach().numpy() for p in model.parameters()], masks, parts, 0.3, momentum)
    for name, mask, want in zip(names, masks, expected, strict=True):
        # A removed weight is zero: its mask can bring nothing back in the score.
        torch.testing.assert_close(actual[name], torch.from_numpy(want * mask), rtol=1e-9, atol=1e-13)
    assert max(float(s.max()) for s in actual.values()) > 0


def attention() -> nn.Module:
    """A small transformer block with fused attention."""

    def form(net: Wired, x: Tensor) -> Tensor:
        q, k, v = (part.unsqueeze(1) for part in net.qkv(net.norm(x)).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        return net.head(nn.functional.gelu(x + mixed).mean(1))

    return Wired(form, norm=nn.LayerNorm(4), qkv=nn.Linear(4, 12), head=nn.Linear(4, 3))


def convolutional() -> nn.Module:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 4, 3, groups=2), *head)


@pytest.mark.parametrize(("make", "shape"), [(convolutional, (2, 6, 6)), (attention, (5, 4))])
def test_unrolled_training_by_finite_differences(make: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    model, data = make().double().train(), labelled(4, [6, 5, 6, 5], shape)
    actual = score(model, data, lr=0.2)
    source = torch.Generator().manual_seed(4)
    for name, found in actual.items():
        for entry in torch.randperm(found.numel(), generator=source)[:6].tolist():

            def loss(c: float, name: str = name, entry: int = entry, like: Tensor = found) -> float:
                mask = torch.ones_like(like)
                mask.view(-1)[entry] = c
                return twin.loss_after_training(model, {name: mask}, data, 0.2)

            want = abs(twin.slope_of_training(loss))
            assert float(found.view(-1)[entry]) == pytest.approx(want, rel=1e-5, abs=1e-9)


def test_parts_of_the_pruning_set() -> None:
    model, data = perceptron(7), labelled(7, [4] * 8)
    grouped = [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(data[::2], data[1::2], strict=True)]
    # Without BatchNorm a part of two batches is the batch of both.
    for name, value in score(model, data).items():
        torch.testing.assert_close(value, score(model, grouped)[name], rtol=1e-12, atol=1e-14)
    # One batch is every part; with fixed statistics images are cut whatever the batches.
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    for name, value in score(model, whole).items():
        torch.testing.assert_close(value, score(model, whole * 4)[name], rtol=1e-12, atol=1e-14)
    running = score(model, data, calibration="running")
    for name, value in score(model, whole, calibration="running").items():
        torch.testing.assert_close(value, running[name], rtol=1e-12, atol=1e-14)
        assert not torch.allclose(value, score(model, whole)[name], rtol=1e-3)
    single = score(model, [(whole[0][0][:2], whole[0][1][:2])], calibration="running")
    assert all(value.isfinite().all() for value in single.values())


def test_first_order_is_the_gradient_after_training() -> None:
    model, data = perceptron(3), labelled(3, [6] * 4)
    full, first = score(model, data), score(model, data, first_order=True)
    trained = perceptron(3)
    for x, y in data[:-1]:
        trained.zero_grad()
        nn.functional.cross_entropy(trained(x), y).backward()
        torch.optim.SGD(trained.parameters(), lr=0.1).step()
    trained.zero_grad()
    nn.functional.cross_entropy(trained(data[-1][0]), data[-1][1]).backward()
    for name, value in first.items():
        gradient = trained.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(value, (model.get_parameter(name) * gradient).abs().detach())
        assert not torch.allclose(value, full[name], rtol=1e-3)


def test_missing_labels_and_divergence() -> None:
    with pytest.raises(InvalidInput, match="'prospr' needs labels"):
        score(perceptron(0), torch.randn(4, 4))
    with pytest.raises(PathexError, match=r"diverges within 3 steps of lr=1e\+200; allowed: a smaller lr"):
        score(perceptron(0), labelled(0, [4]), lr=1e200)
