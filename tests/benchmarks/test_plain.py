import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathex
from benchmarks.plain import plain_px, plain_scores
from brute_force.cases import Wired
from refusals import refused

# The names that the released code takes for weights although they belong to normalisation layers.
SQUARED = ["*.shortcut.1"]


@pytest.fixture
def problem():
    torch.manual_seed(3)
    model = pathex.models.CifarResNet(8, num_classes=4, width=3).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    return model, torch.randn(6, 3, 8, 8, dtype=torch.float64)


def test_plain_scores_are_those_of_pathex_up_to_one_factor(problem):
    model, images = problem
    mask = pathex.Mask({name: torch.rand_like(p) > 0.3 for name, p in model.named_parameters() if p.dim() > 1})
    actual = plain_scores(model, images, mask)
    expected = pathex.score(model, "px-cvpr24", images, mask=mask, squared_norms=SQUARED)
    assert actual.keys() == expected.keys()
    actual, expected = (torch.cat([scores[name].flatten() for name in scores]) for scores in (actual, expected))
    assert expected.sum() > 0
    torch.testing.assert_close(actual / actual.sum(), expected / expected.sum(), rtol=1e-8, atol=1e-16)


def test_plain_rounds_keep_what_pathex_keeps_and_leave_no_trace(problem):
    model, images = problem
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    relu, numbers = F.relu, []
    mask = plain_px(model, images, sparsity=0.7, rounds=3, on_round=numbers.append)
    options = {"sparsity": 0.7, "rounds": 3, "progress": False, "squared_norms": SQUARED}
    result = pathex.prune(model, "px-cvpr24", data=images, **options)
    assert pathex.Mask({name: entry.bool() for name, entry in mask.items()}) == result.mask
    assert numbers == [1, 2, 3]
    assert all(entry.all() for entry in plain_px(model, images, sparsity=0.0, rounds=2).values())
    with refused(r"nn\.ReLU or F\.relu"):
        plain_px(nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 1)), torch.ones(1, 2), sparsity=0.5, rounds=1)
    assert F.relu is relu
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_modules_of_relu_are_gated_as_functions_are():
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 3, 3, bias=False), nn.Linear(12, 2, bias=False)

    parts = {"0": first, "3": second}
    functions = Wired(lambda net, x: getattr(net, "3")(F.relu(getattr(net, "0")(x)).flatten(1)), **parts)
    modules = nn.Sequential(first, nn.ReLU(inplace=True), nn.Flatten(), second)
    x = torch.randn(5, 1, 4, 4)
    mask = {"0.weight": torch.ones_like(first.weight), "3.weight": torch.ones_like(second.weight)}
    expected, actual = plain_scores(functions, x, mask), plain_scores(modules, x, mask)
    assert expected["0.weight"].any()
    torch.testing.assert_close(actual, expected)
