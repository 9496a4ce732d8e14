"""Masks that move on a network that trains by its kept weights alone."""

import copy

import pytest
import torch

import model_factories
import pathex
from pathex import Mask, sparse
from pathex.pruning import dynamic

pytest.importorskip("numba")


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masks_move_as_on_the_dense_network(method, optimizer):
    torch.manual_seed(0)
    model = model_factories.tiny(4, 3, width=6).double()
    mask = Mask({name: torch.rand(w.shape) < 0.3 for name, w in model.named_parameters() if w.dim() > 1})
    pathex.make_permanent(model, mask)
    net = sparse.convert(model, mask, torch.zeros(2, 3, 8, 8, dtype=torch.float64), choice="sparse")
    known = {}
    for name, network in (("dense", copy.deepcopy(model)), ("kept", net)):
        trained = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer](network.parameters(), lr=0.05)
        handle = dynamic.attach(network, mask, trained, method=method, steps=12, every=3, fraction=0.5, seed=1)
        generator = torch.Generator().manual_seed(2)
        masks = []
        for _ in range(12):
            x = torch.randn(10, 3, 8, 8, dtype=torch.float64, generator=generator)
            trained.zero_grad()
            torch.nn.functional.cross_entropy(network(x), torch.arange(10) % 4).backward()
            trained.step()
            masks.append(handle.mask)
        known[name] = (masks, network.state_dict(), handle.updates)
    assert known["dense"][2] == known["kept"][2] > 1
    assert known["dense"][0][-1] != mask
    assert known["dense"][0] == known["kept"][0]
    for name, value in known["dense"][1].items():
        torch.testing.assert_close(known["kept"][1][name], value, rtol=1e-9, atol=1e-12)
    assert all(
        layer.weight.numel() == int(known["kept"][0][-1][name].sum()) for name, layer in sparse.kept_layers(net).items()
    )
