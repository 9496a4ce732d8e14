"""A network of each family of the zoo, compacted: equal outputs at other batches and sizes."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import pathex
from benchmarks.zoo.catalogue import build, catalogue

SPARSITIES = (0.9, 0.95, 0.982, 0.99)
METHODS = ("random", "magnitude", "synflow", "px")
SMALLEST = {each.family: each for each in sorted(catalogue(), key=lambda each: -each.parameters - each.multiply_adds)}


def outputs(network, x):
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(network(x)) if isinstance(leaf, torch.Tensor)]


def with_statistics(model):
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for entry, level in (
                (module.running_mean, 0),
                (module.running_var, 1),
                (module.weight, 1),
                (module.bias, 0),
            ):
                entry.data.copy_(level + 0.3 * torch.randn(entry.shape, generator=generator).clamp(-2, 2))
    return model.double().eval()


def assert_compacts(model, mask, x):
    small, dense = pathex.compact(model, mask, x[:1]), pathex.make_permanent(copy.deepcopy(model), mask)
    for images in (x, x[:1], nn.functional.interpolate(x, scale_factor=2)):
        try:
            expected = outputs(dense, images)
        except Exception:  # the network takes no other sizes
            continue
        for found, one in zip(outputs(small, images), expected, strict=True):
            torch.testing.assert_close(found, one, rtol=0, atol=1e-10 * max(1e-6, float(one.abs().max())))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SMALLEST)), ids=sorted(SMALLEST))
@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_families(number):
    """One method and sparsity each, in turns: all of them on all families would take a day."""
    family = sorted(SMALLEST)[number]
    model, x, y = build(SMALLEST[family])
    model, x = with_statistics(model), x.double()
    sparsity, method = SPARSITIES[number // len(METHODS) % len(SPARSITIES)], METHODS[number % len(METHODS)]
    how = {"per_sample": "one"} if method == "synflow" else {}
    mask = pathex.prune(model, method, sparsity=sparsity, data=[(x, y)], rounds=2, progress=False, **how).mask
    assert_compacts(model, mask, x)
