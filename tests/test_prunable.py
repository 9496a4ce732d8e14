"""Which weights are pruned."""

import pytest
import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput
from pathex.prunable import prunable_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.block = nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU(), nn.ConvTranspose2d(2, 2, 1))
        self.embed = nn.Embedding(5, 2)
        self.head = nn.Linear(2, 3)


def test_weights_of_convolutions_and_linear_layers_in_order() -> None:
    model = Net()
    found = prunable_weights(model)
    assert list(found) == ["stem.weight", "block.0.weight", "block.2.weight", "head.weight"]
    assert found["head.weight"] is model.head.weight


@pytest.mark.parametrize(
    "ignore",
    ["block.*", ["block.?"], ["block.*.weight"], ["block.0", "block.2"], [nn.Conv1d, nn.ConvTranspose2d], "module"],
)
def test_ignoring_by_glob_type_and_module(ignore: object) -> None:
    model = Net()
    chosen = [model.block] if ignore == "module" else ignore
    assert list(prunable_weights(model, ignore=chosen)) == ["stem.weight", "head.weight"]  # type: ignore[arg-type]


def test_a_single_selector_needs_no_list() -> None:
    model = Net()
    assert "head.weight" not in prunable_weights(model, ignore=model.head)  # type: ignore[arg-type]
    assert "head.weight" not in prunable_weights(model, ignore=nn.Linear)  # type: ignore[arg-type]


def test_the_user_adds_other_modules() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    model = nn.Sequential(nn.Embedding(4, 3), Scale(), nn.LayerNorm(3), nn.Linear(3, 2))
    assert list(prunable_weights(model, prunable=[nn.Embedding, Scale])) == ["0.weight", "1.weight", "3.weight"]
    assert list(prunable_weights(model, prunable=["2"], ignore=["3"])) == ["2.weight"]


def test_a_bare_layer_is_a_model() -> None:
    assert list(prunable_weights(nn.Linear(2, 2))) == ["weight"]
    with pytest.raises(InvalidInput, match="nothing to prune"):
        prunable_weights(nn.Linear(2, 2), ignore=["weight"])


def test_shared_weights_appear_once_and_stay_dense_if_either_use_is_ignored() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    model[2].weight = model[0].weight
    assert list(prunable_weights(model)) == ["0.weight", "3.weight"]
    assert list(prunable_weights(model, ignore=["2"])) == ["3.weight"]


def parametrized() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)))


def pruned_by_torch() -> nn.Module:
    from torch.nn.utils.prune import random_unstructured

    return nn.Sequential(random_unstructured(nn.Linear(2, 2), "weight", 0.5))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Sequential(nn.ReLU()), {}, "Sequential has nothing to prune"),
        (Net(), {"ignore": ["*"]}, "Net has nothing to prune"),
        (Net(), {"ignore": ["fc"]}, "ignore: 'fc' matches no module of Net"),
        (Net(), {"prunable": [nn.LSTM]}, "prunable: LSTM matches no module of Net"),
        (Net(), {"ignore": [nn.Linear(1, 1)]}, "ignore: Linear matches no module"),
        (Net(), {"ignore": [3]}, "a selector is a glob, a module class or a module, not int"),
        (parametrized(), {}, "weight of '0' is a parametrization"),
        (pruned_by_torch(), {}, "weight of '0' is a parametrization"),
        (nn.Sequential(nn.LazyLinear(2)), {}, "weight of '0' has no shape yet"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_cannot_be_pruned_is_named(model: nn.Module, options: dict, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        prunable_weights(model, **options)


def test_parametrized_layers_can_be_ignored() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    assert list(prunable_weights(model, ignore=["0"])) == ["1.weight"]
