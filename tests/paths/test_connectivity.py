"""Connectivity against the obvious test: take a kept weight out of a positive network and see what changes."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from brute_force.cases import Branches, prunable, random_mask
from pathex.masks import prunable_weights
from pathex.paths import connectivity


def _positive(model: nn.Module) -> None:
    """Positive weights, no biases, norms that do nothing: whatever arrives stays positive."""
    with torch.no_grad():
        for name, entry in model.named_parameters():
            draw = 0.5 + torch.rand(entry.shape, generator=torch.Generator().manual_seed(entry.numel()))
            entry.copy_(draw if entry.dim() > 1 else torch.full(entry.shape, float(name.endswith("weight"))))


def _by_deletion(model: nn.Module, mask: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """A kept weight is connected if and only if the output changes without it."""
    model.double().eval()
    _positive(model)
    kept = {name: model.get_parameter(name).detach() * keep for name, keep in mask.items()}
    whole = functional_call(model, kept, (x,))
    found = {}
    for name, keep in mask.items():
        found[name] = torch.zeros_like(keep)
        for index in keep.nonzero().tolist():
            without = kept[name].clone()
            without[tuple(index)] = 0
            changed = not torch.equal(functional_call(model, kept | {name: without}, (x,)), whole)
            found[name][tuple(index)] = changed
    return found


def _residual() -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1))
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(inplace=True), Branches(body, nn.Identity()), *_head(18))


def _head(features: int) -> list[nn.Module]:
    return [nn.ReLU(), nn.Flatten(), nn.Linear(features, 2)]


def _joined() -> nn.Sequential:
    branches = Branches(nn.Conv2d(1, 2, 1), nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU6()), join="cat")
    return nn.Sequential(
        branches, nn.BatchNorm2d(3), nn.Conv2d(3, 2, 2, bias=False), nn.AdaptiveAvgPool2d(1), *_head(2)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 3)), (4,)),
    "residual": (_residual, (1, 4, 4)),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 2, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1), *_head(8)),
        (4, 3, 3),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2), *_head(64)),
        (1, 3, 3),
    ),
    "average pool": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.AvgPool2d(2), nn.Conv2d(3, 2, 1), *_head(2)),
        (1, 3, 3),
    ),
    "joined": (_joined, (1, 3, 3)),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Conv2d(3, 2, 1), *_head(8)
        ),
        (3, 2, 2),
    ),
    "up": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2, 1, 2)),
        (1, 2, 2),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("density", "seed"), [(0.5, 0), (0.3, 1), (0.15, 2)])
def test_connected_weights_are_those_whose_removal_shows(name: str, density: float, seed: int) -> None:
    make, shape = NETWORKS[name]
    model = make()
    mask = random_mask(model, seed, density)
    found = connectivity(model, mask, torch.rand(3, *shape))
    expected = _by_deletion(make(), mask, torch.rand(2, *shape, dtype=torch.float64) + 0.5)
    for weight, connected in expected.items():
        assert torch.equal(found.effective[weight], connected), weight
    lost = sum(int((mask[weight] & ~connected).sum()) for weight, connected in expected.items())
    assert found.disconnected == lost
    assert found.dead_layers == [weight for weight, connected in expected.items() if not connected.any()]


def test_a_max_pool_passes_its_whole_window() -> None:
    """The real pool would pick one; every pixel can be the maximum."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2))
    mask = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in prunable(model)}
    mask["3.weight"][:, 0] = False
    found = connectivity(model, mask, torch.randn(1, 1, 2, 2))
    assert found.effective["0.weight"].flatten().tolist() == [False, True]
    assert found.dead_channels == {"0.weight": [0], "3.weight": []}
    assert found.disconnected == 1


def test_dead_channels_of_a_transposed_convolution_are_output_channels() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 1, groups=2), nn.Flatten(), nn.Linear(6, 1))
    mask = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in prunable(model)}
    mask["0.weight"][2:, 1] = False  # fifth channel: the second one of the second group
    found = connectivity(model, mask, torch.randn(1, 4, 1, 1))
    assert found.dead_channels == {"0.weight": [4], "2.weight": []}
    assert found.disconnected == 1
    assert not found.effective["2.weight"][0, 4]


def test_opposite_signs_do_not_cancel() -> None:
    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) - self.b(-x) * -0.5

    model = Difference()
    mask = random_mask(model, 0, 1.0)
    assert connectivity(model, mask, torch.randn(1, 2)).disconnected == 0


@pytest.mark.parametrize("layer", [lambda: nn.Linear(1, 1), lambda: nn.Conv2d(1, 1, 3, padding=1)])
def test_depth_neither_overflows_nor_underflows(layer: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(*(layer() for _ in range(200)))
    x = torch.randn(1, 1) if isinstance(model[0], nn.Linear) else torch.randn(1, 1, 3, 3)
    mask = random_mask(model, 0, 1.0)
    assert connectivity(model, mask, x).disconnected == 0
    mask["100.weight"][:] = False
    found = connectivity(model, mask, x)
    assert len(found.dead_layers) == 200
    assert found.disconnected == sum(int(keep.sum()) for keep in mask.values())


def test_a_wide_residual_chain_stays_finite() -> None:
    """Each block doubles the number of paths or more: 2^150 of them leave float32."""
    blocks = (Branches(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Identity()) for _ in range(150))
    model = nn.Sequential(nn.Conv2d(1, 4, 1), *blocks, *_head(16))
    mask = random_mask(model, 3, 0.5)
    found = connectivity(model, mask, torch.randn(1, 1, 2, 2))
    reached = found.effective["1.branches.0.weight"]
    assert reached.any()
    assert not (reached & ~mask["1.branches.0.weight"]).any()


def test_parameters_and_statistics_play_no_part() -> None:
    """Only the mask counts: zero gammas, zero weights and a fresh or a broken statistic are all present."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1))
    for entry in (*model.parameters(), model[1].running_var):
        entry.data.fill_(float("nan"))
    mask = random_mask(model, 0, 1.0)
    assert connectivity(model, mask, torch.full((1, 1, 2, 2), float("nan"))).disconnected == 0


class _Standardised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight - self.weight.mean(1, keepdim=True))


def test_the_mask_of_a_computed_weight_stands_in_its_place() -> None:
    model = nn.Sequential(_Standardised(3, 3), nn.Linear(3, 2))
    plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    mask = random_mask(model, 0)
    found, expected = (connectivity(net, mask, torch.randn(1, 3)) for net in (model, plain))
    assert all(torch.equal(found.effective[name], expected.effective[name]) for name in mask)


class _Chooses(nn.Module):
    def __init__(self, choose: Callable[[torch.Tensor], torch.Tensor], width: int) -> None:
        super().__init__()
        self.a, self.b, self.head, self.choose = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(width, 2), choose

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.choose(torch.stack([self.a(x), self.b(x)])))


@pytest.mark.parametrize(
    ("choose", "width"),
    [
        (lambda y: y.max(0).values, 8),
        (lambda y: y.amax(0), 8),
        (lambda y: y.sort(0)[0][1], 8),
        (lambda y: y.sum(0).topk(3, 1).values, 3),
        (lambda y: torch.maximum(y[0], y[1]), 8),
        (lambda y: y.sum(0).masked_fill(y[0] < 1.5, 0.0), 8),
        (lambda y: y.sum(0) * (y[0] > 1.5), 8),
        (lambda y: torch.where(y[0] > y[1], y[0], y[1]), 8),
    ],
)
def test_whatever_may_be_chosen_is_connected(choose: Callable[[torch.Tensor], torch.Tensor], width: int) -> None:
    model = _Chooses(choose, width)
    mask = {name: torch.ones_like(entry, dtype=torch.bool) for name, entry in prunable_weights(model).items()}
    assert connectivity(model, mask, torch.randn(1, 5)).disconnected == 0
