"""2:4 on the sparse tensor cores of a GPU."""

import pytest
import torch
from torch import nn

import pathex
from pathex.errors import UnsupportedOperation
from refusals import refused


def ticket(device="cpu", dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).to(device, dtype)
    x = torch.randn(32, 64, device=device, dtype=dtype)
    how = {"sparsity": 0.5, "data": x, "structure": "2:4", "progress": False}
    return model, pathex.prune(model, "magnitude", **how).mask, x


def test_what_it_needs_is_said():
    model, mask, x = ticket()
    with refused("compute capability 8.0 or more, not cpu", UnsupportedOperation):
        pathex.sparse.semi_structured(model, mask)
    other = pathex.prune(model, "random", sparsity=0.5, data=x, progress=False).mask
    with refused("prune with structure='2:4'"):
        pathex.sparse.semi_structured(model, other)


@pytest.mark.gpu
def test_outputs_are_those_of_the_masked_network():
    model, mask, x = ticket("cuda", torch.float16)
    found = pathex.sparse.semi_structured(model, mask)
    assert type(found[0].weight.data).__name__.startswith("SparseSemiStructured")
    torch.testing.assert_close(found(x), pathex.make_permanent(model, mask)(x), rtol=1e-2, atol=1e-2)
