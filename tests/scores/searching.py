"""Short searches of small networks, and what they see and find."""

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import draw
from pathex.pruning import rounds

SHORT = {
    "cts": ("cts", {"epochs": 4, "batch_size": 4, "lr": 0.3}),
    "cts-kl": ("cts", {"epochs": 2, "batch_size": 5, "lr": 0.3, "loss": "kl"}),
    "edge-popup": ("edge-popup", {"epochs": 3, "batch_size": 4, "lr": 0.3}),
    "dpai": ("dpai", {"steps": 8, "lr": 0.1, "alpha": 0.9, "beta": 0.3}),
    "widetopo": ("widetopo", {"iterations": 2, "restorations": 2, "epsilon": 0.3}),
}
every_search = pytest.mark.parametrize("name", SHORT)


def searched(model, method, data, *, sparsity=0.4, **how):
    """The problem that a search saw, its values, and the mask that `prune` made of them."""
    seen, scored = [], rounds.scored

    def spy(problem, call):
        seen.append((problem, scored(problem, call)))
        return seen[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "scored", spy)
        mask = pathex.prune(model, method, sparsity=sparsity, data=data, **how).mask
    (problem, values), *more = seen
    assert not more
    return problem, values, mask


def small(name="cts"):
    """A search, its network and data, in float32; of DPaI with more steps than there are between checkpoints."""
    method, options = SHORT[name]
    options = options | ({"steps": 120} if name == "dpai" else {})
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    generator = draw(model, 55)
    data = torch.randn(12, 3, generator=generator), torch.arange(12) % 2
    return model, method, [(x, y) for x, y in zip(*(part.split(7) for part in data), strict=True)], options
