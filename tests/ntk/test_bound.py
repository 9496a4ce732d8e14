"""The paths of a mask in numbers, against every path of small networks."""

import itertools
import math

import pytest
import torch
from torch import nn

from brute_force import kernels
from brute_force.cases import build, perceptron, random_mask
from pathex import ntk
from pathex.errors import PathexError, UnsupportedOperation
from pathex.masks import prunable_weights
from pathex.paths import connectivity, count_paths
from refusals import refused


def every_path(model, x, mask):
    """Of a perceptron without biases: weights of each path, its gate for each image, its input, its output."""
    layers = [
        (f"{n}.weight", model[n].weight.detach() * mask.get(f"{n}.weight", torch.tensor(True))) for n in (0, 2, 4)
    ]
    first = x @ layers[0][1].T
    second = first.relu() @ layers[1][1].T
    for i, a, b, k in itertools.product(*(range(n) for n in (3, 4, 3, 2))):
        weights = [layers[0][1][a, i], layers[1][1][b, a], layers[2][1][k, b]]
        if all(weights):
            yield [float(w) for w in weights], ((first[:, a] > 0) & (second[:, b] > 0)).double(), x[:, i], k


@pytest.mark.parametrize("masked", [False, True])
def test_numbers_are_those_of_every_path(masked):
    model, x = build("mlp-without-bias", int(torch.randint(1000, ())), images=5)
    mask = random_mask(model, 1, 0.6) if masked else {}
    found = ntk.path_numbers(model, x, mask or None)
    paths = list(every_path(model, x, mask))
    seen, weighed, expected = torch.zeros(2), torch.zeros(2), 0.0
    for weights, gate, start, k in paths:
        squares = [math.prod(w**2 for j, w in enumerate(weights) if j != out) for out in range(3)]
        seen[k] += float((gate * start**2).sum())
        weighed[k] += sum(squares)
        expected += sum(squares) * float((gate * start**2).sum())
    assert found.log10_paths == pytest.approx(math.log10(len(paths)), abs=1e-9)
    active = sum(float(gate.sum()) for _, gate, _, _ in paths) / 5
    assert found.log10_active == pytest.approx(math.log10(active), abs=1e-9) if active else -math.inf
    assert found.bound == pytest.approx(float(seen.sum() * weighed.sum()), rel=1e-5)
    assert found.bound_by_output == pytest.approx(float(seen @ weighed), rel=1e-5)
    assert found.expected == pytest.approx(expected, rel=1e-10)
    assert found.trace == pytest.approx(float(kernels.all_rows(model, x, mask, "running").square().sum()), rel=1e-10)
    assert found.trace <= found.bound_by_output <= found.bound
    assert found.tightness == found.trace / found.bound_by_output


def test_the_expected_trace_is_the_mean_over_all_signs():
    model = perceptron(2, 2, 2, bias=False).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    w, v = (model[n].weight.detach() for n in (0, 2))
    gates = (x @ w.T > 0).double()

    def trace(a, b):
        rows = torch.func.jacrev(lambda a, b: (x @ a.T * gates) @ b.T, (0, 1))(a, b)
        return sum(float(part.square().sum()) for part in rows)

    signs = [torch.tensor(each).view(2, 2, 2) for each in itertools.product((1.0, -1.0), repeat=8)]
    mean = sum(trace(w * s[0], v * s[1]) for s in signs) / len(signs)
    assert ntk.path_numbers(model, x).expected == pytest.approx(mean, rel=1e-10)


@pytest.mark.parametrize("name", ["residual", "depthwise", "transposed", "max-pool"])
def test_layers_are_as_connectivity_and_counts_have_them(name):
    model, x = build(name, 4)
    mask = random_mask(model, 1, 0.5)
    found = ntk.path_numbers(model, x, mask)
    connected = connectivity(model, mask, x)
    assert found.disconnected == connected.disconnected
    assert found.log10_paths == pytest.approx(math.log10(count_paths(model, x, mask).total), abs=1e-9)
    for weight, layer in found.layers.items():
        assert layer.units - layer.live == len(connected.dead_channels[weight])
        fewest, mean, most = layer.fan_in
        assert mean * layer.live == pytest.approx(int(connected.effective[weight].sum())) and fewest <= mean <= most


def test_a_removed_layer_leaves_no_path():
    model, x = build("mlp-without-bias", 3)
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    mask["2.weight"][:] = False
    found = ntk.path_numbers(model, x, mask)
    assert found.log10_paths == found.log10_active == -math.inf
    assert found.bound == found.bound_by_output == found.expected == found.trace == 0
    assert math.isnan(found.tightness)
    assert found.layers["0.weight"].live == 0 and found.disconnected == 18


def test_what_has_no_paths_is_refused_in_one_line():
    model, x = build("residual", 3)
    with refused("unknown batch_norm 'batch'.*calibrated, stored"):
        ntk.path_numbers(model, x, batch_norm="batch")
    with refused("its coefficients depend on the sample.*per_sample='one'", UnsupportedOperation):
        ntk.path_numbers(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2)), torch.randn(2, 3))
    with refused("Bilinear takes several inputs; allowed for paths in numbers: one tensor"):
        mask = {"weight": torch.ones(1, 2, 2, dtype=torch.bool)}
        ntk.path_numbers(nn.Bilinear(2, 2, 1), [((torch.ones(2, 2), torch.ones(2, 2)), torch.zeros(2))], mask)
    deep = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(200)))
    with refused("the network of ones leaves float64", PathexError):
        ntk.path_numbers(deep, torch.randn(1, 100))


def test_coefficients_of_a_sample_may_count_one():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double()
    found = ntk.path_numbers(model, torch.randn(2, 3, dtype=torch.float64), per_sample="one")
    assert found.log10_paths == pytest.approx(math.log10(18)) and found.disconnected == 0
