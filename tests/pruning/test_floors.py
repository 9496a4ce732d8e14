import itertools
import math

import pytest
import torch
from torch import nn

import pathex
import small_timm
from brute_force.cases import Wired
from pathex.paths import OnPaths, connectivity, roles
from pathex.pruning.floors import Floors
from pathex.scores import Magnitude


def _excited(net, x):
    branch = net.widen(net.depthwise(net.narrow(x).relu()).relu())
    gate = net.expand(net.reduce(branch.mean((2, 3))).relu()).sigmoid()
    return x + branch * gate[:, :, None, None]


def _block():
    """A residual block whose branch and gate are faint beside its shortcut."""
    convs = {"narrow": nn.Conv2d(16, 8, 1), "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8)}
    layers = {"widen": nn.Conv2d(8, 16, 1), "reduce": nn.Linear(16, 4), "expand": nn.Linear(4, 16)}
    block = Wired(_excited, **convs, **layers)
    with torch.no_grad():
        for entry in block.parameters():
            entry.mul_(0.01)
    return block


def _network():
    torch.manual_seed(0)
    stem, head = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()), (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return nn.Sequential(*stem, *(_block() for _ in range(3)), *head)


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize(("allocation", "rounds"), [("global", 1), ("global", 5), ("uniform", 2)])
def test_px_cuts_off_no_layer(allocation, rounds):
    model = _network()
    seen, how = [], {"rounds": rounds, "allocation": allocation}
    result = pathex.prune(model, "px", sparsity=0.9, data=IMAGES, on_round=lambda _, mask: seen.append(mask), **how)
    assert result.report.dead_layers == []
    assert result.mask.kept == round(0.1 * result.mask.total)
    for before, after in itertools.pairwise(seen):
        assert all((after[name] <= before[name]).all() for name in after)


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_the_best_weights_alone_would_cut_layers_off():
    model = _network()
    scores = pathex.score(model, "px", IMAGES)
    result = pathex.prune(model, lambda *_: scores, sparsity=0.9, data=IMAGES, rounds=1)
    assert len(result.report.dead_layers) >= 6


def test_each_layer_gets_its_best_weight_on_a_path():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    scores = {
        "0.weight": torch.tensor([[9.0, 1.0], [2.0, 8.0], [3.0, 3.0]]),
        "2.weight": torch.tensor([[1.0, 2.0, 3.0]]),
    }
    everything = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}

    def keep(raised, *, forced=None):
        """The three best of all."""
        first = forced or {name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}
        flat = torch.cat([raised[name].masked_fill(first[name], math.inf).flatten() for name in scores])
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[flat.argsort(descending=True, stable=True)[:3]] = True
        return {"0.weight": chosen[:6].view(3, 2), "2.weight": chosen[6:].view(1, 3)}

    floors = Floors(lambda mask: roles(model, mask, torch.ones(1, 2)), lambda mask: True, 0.1, everything)
    connected = OnPaths(model, torch.ones(1, 2))
    # Without help: 9 and 8 of the first layer, and one of the weights of score 3, which meets none of them.
    kept = floors.keep(scores, everything, keep, connected, count=3, last=True)
    # The first layer still has its best weight; the second has its best among those that it reaches.
    assert kept["0.weight"].sum() + kept["2.weight"].sum() == 3
    assert all(part.any() for part in connectivity(model, kept, torch.ones(1, 2)).effective.values())
    assert set(floors.parts) == set(scores)


def test_what_cannot_be_read_is_left_to_the_scores():
    net = nn.Sequential(nn.Linear(4, 4), Wired(lambda net, x: torch.fft.rfft(x).real), nn.Linear(3, 2))
    scores = {"0.weight": torch.ones(4, 4), "2.weight": torch.zeros(2, 3)}
    mask = {name: score > 0 for name, score in scores.items()}
    floors = Floors(lambda mask: roles(net, mask, torch.ones(1, 4)), lambda mask: True, 0.1, mask)
    connected = OnPaths(net, torch.ones(1, 4))
    assert floors.keep(scores, mask, lambda _, forced: mask, connected, count=16, last=True) is mask
    assert not floors.reads


def test_layers_on_no_path_stay_as_they_are():
    net = Wired(lambda net, x: net.used(x), used=nn.Linear(4, 3), unused=nn.Linear(4, 3))
    with pytest.warns(pathex.errors.PathexWarning, match=r"all scores are zero.*: unused\.weight"):
        result = pathex.prune(net, "px", sparsity=0.5, data=torch.randn(4, 4), rounds=3)
    assert result.mask["unused.weight"].sum() == 0
    assert result.report.unused == ["unused.weight"]


def test_infinite_scores_are_named():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

    def scorer(model, batches, mask):
        return {name: torch.full(entry.shape, float("inf")) for name, entry in mask.items()}

    with pytest.warns(pathex.errors.PathexWarning, match=r"overflow.*0\.weight, 2\.weight"):
        pathex.prune(net, scorer, sparsity=0.5, data=torch.randn(4, 4))
    with pytest.raises(pathex.errors.InvalidInput, match=r"overflow.*strict"):
        pathex.prune(net, scorer, sparsity=0.5, data=torch.randn(4, 4), strict=True)


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning", "ignore::pathex.errors.LayerCollapse")
@pytest.mark.parametrize("sparsity", [0.995, 0.998])
def test_where_there_is_no_room_scores_decide(sparsity):
    model = _network()
    result = pathex.prune(model, "px", sparsity=sparsity, data=IMAGES, rounds=3)
    assert result.mask.kept == round((1 - sparsity) * result.mask.total)
    assert connectivity(model, result.mask, IMAGES[:1]).effective["0.weight"].any()


def test_infinite_scores_of_a_method_give_way_to_paths():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))

    class Overflowing(Magnitude):
        floor = 0.1

        def score(self, problem):
            infinite = {"2.weight": float("inf")}
            return {name: score + infinite.get(name, 0.0) for name, score in super().score(problem).items()}

    with pytest.warns(pathex.errors.PathexWarning, match="overflow"):
        result = pathex.prune(net, Overflowing(), sparsity=0.8, data=torch.randn(4, 6))
    assert result.report.dead_layers == []


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("seed", range(3))
def test_the_query_of_a_class_token_stays_with_the_keys_that_it_asks(seed):
    torch.manual_seed(seed)
    result = pathex.prune(small_timm.vit(), "px", sparsity=0.9, data=torch.randn(6, 3, 16, 16), rounds=3)
    assert result.report.dead_layers == []
    assert all(part.any() for part in result.mask["blocks.0.attn.qkv.weight"].chunk(3))
