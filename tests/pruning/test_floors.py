"""No layer on a path is cut off; weights on no path from the images: position biases, constant queries."""

import itertools
import math

import pytest
import timm
import torch
from torch import nn

import pathex
import small_timm
from brute_force.cases import Wired, perceptron
from pathex.errors import InvalidInput, MaskMismatch, PathexWarning
from pathex.masks import Mask, all_kept, prunable_weights
from pathex.paths import OnPaths, connectivity, roles
from pathex.pruning.floors import Floors
from pathex.pruning.topk import keep_best
from pathex.scores import Magnitude

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(no path|piecewise-linear):pathex.errors.PathexWarning", "ignore:read as one"
)


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
    assert all((after - before).kept == 0 for before, after in itertools.pairwise(seen))


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_the_best_weights_alone_would_cut_layers_off():
    model = _network()
    scores = pathex.score(model, "px", IMAGES)
    result = pathex.prune(model, lambda *_: scores, sparsity=0.9, data=IMAGES, rounds=1)
    assert len(result.report.dead_layers) >= 6


def test_each_layer_gets_its_best_weight_on_a_path():
    model = perceptron(2, 3, 1, bias=False)
    scores = {
        "0.weight": torch.tensor([[9.0, 1.0], [2.0, 8.0], [3.0, 3.0]]),
        "2.weight": torch.tensor([[1.0, 2.0, 3.0]]),
    }
    everything = all_kept(scores)

    def keep(raised, *, forced=None):
        first = forced or {name: ~entry for name, entry in everything.items()}
        return keep_best({name: raised[name].masked_fill(first[name], math.inf) for name in scores}, everything, 3)

    x = torch.ones(1, 2)
    floors = Floors(lambda mask: roles(model, mask, x), lambda mask: True, 0.1, everything)
    # Without help: 9 and 8 of the first layer, and one of the weights of score 3, which meets none of them.
    kept = floors.keep(scores, everything, keep, OnPaths(model, x), count=3, last=True)
    # The first layer still has its best weight; the second has its best among those that it reaches.
    assert kept["0.weight"].sum() + kept["2.weight"].sum() == 3
    assert all(part.any() for part in connectivity(model, kept, x).effective.values())
    assert set(floors.parts) == set(scores)


def test_a_removed_weight_does_not_return_to_join_a_part():
    """A query, itself on no path, lets the values through; the best of its weights was removed before."""
    scores = {"query": torch.tensor([9.0, 5.0, 1.0]), "value": torch.tensor([8.0, 7.0])}
    allowed = {"query": torch.tensor([False, True, True]), "value": torch.ones(2, dtype=torch.bool)}

    def connected(mask, names=None):
        none = {name: torch.zeros_like(entry) for name, entry in mask.items()}
        return none | {"value": mask["value"]} if mask["query"].any() else none

    def keep(_, *, forced=None):
        query = torch.zeros(3, dtype=torch.bool) if forced is None else forced["query"]
        return {"query": query, "value": allowed["value"]}

    floors = Floors(lambda mask: {"query": [], "value": [mask["value"]]}, lambda mask: True, 0.1, allowed)
    kept = floors.keep(scores, allowed, keep, connected, count=3, last=True)
    assert kept["query"].tolist() == [False, True, False] and kept["value"].all()


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
    with pytest.warns(PathexWarning, match=r"1 weights are not used .*: unused\.weight; .* ignore="):
        result = pathex.prune(net, "px", sparsity=0.5, data=torch.randn(4, 4), rounds=3)
    assert (
        result.mask["unused.weight"].all()
        and result.mask["used.weight"].sum() == 6
        and result.report.off_path == ["unused.weight"]
    )
    with pytest.warns(PathexWarning, match=r"all scores are zero.*: unused\.weight"):
        result = pathex.prune(net, "px", sparsity=0.5, data=torch.randn(4, 4), rounds=3, prunable=["unused"])
    assert result.mask["unused.weight"].sum() == 0 and result.report.unused == ["unused.weight"]


def test_infinite_scores_are_named_and_those_of_a_method_give_way_to_paths():
    def scorer(model, batches, mask):
        return {name: torch.full(entry.shape, float("inf")) for name, entry in mask.items()}

    given = {"sparsity": 0.5, "data": torch.randn(4, 4)}
    with pytest.warns(PathexWarning, match=r"overflow.*0\.weight, 2\.weight"):
        pathex.prune(perceptron(4, 3, 2), scorer, **given)
    with pytest.raises(InvalidInput, match=r"overflow.*strict"):
        pathex.prune(perceptron(4, 3, 2), scorer, strict=True, **given)

    class Overflowing(Magnitude):
        floor = 0.1

        def score(self, problem):
            infinite = {"2.weight": float("inf")}
            return {name: score + infinite.get(name, 0.0) for name, score in super().score(problem).items()}

    with pytest.warns(PathexWarning, match="overflow"):
        result = pathex.prune(perceptron(6, 6, 6, 6), Overflowing(), sparsity=0.8, data=torch.randn(4, 6))
    assert result.report.dead_layers == []


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning", "ignore::pathex.errors.LayerCollapse")
@pytest.mark.parametrize("sparsity", [0.995, 0.998])
def test_where_there_is_no_room_scores_decide(sparsity):
    model = _network()
    result = pathex.prune(model, "px", sparsity=sparsity, data=IMAGES, rounds=3)
    assert result.mask.kept == round((1 - sparsity) * result.mask.total)
    assert connectivity(model, result.mask, IMAGES[:1]).effective["0.weight"].any()


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("seed", range(3))
def test_the_query_of_a_class_token_stays_with_the_keys_that_it_asks(seed):
    torch.manual_seed(seed)
    result = pathex.prune(small_timm.vit(), "px", sparsity=0.9, data=torch.randn(6, 3, 16, 16), rounds=3)
    assert result.report.dead_layers == []
    assert all(part.any() for part in result.mask["blocks.0.attn.qkv.weight"].chunk(3))


def _asked(net, x, question, bias=0):
    shares = (net.queries(question) @ net.keys(x).mT + bias).softmax(-1)
    return net.head((shares @ net.values(x)).mean(1))


def _biased_attention(net, x):
    """The weights of attention are moved by what a small network makes of the positions (Swin V2)."""
    return _asked(net, x, x, bias=net.outer(net.inner(torch.arange(5.0)[:, None]).relu()).mT)


def _class_token(net, x):
    """A token that stands before the images' asks them, and has seen none of them yet (CaiT)."""
    x = torch.cat((net.token.expand(len(x), 1, -1), x), 1)
    return _asked(net, x, x[:, :1])


# A learned query asks the images (attention pooling), or a class token does.
FORMS = {"query": lambda net, x: _asked(net, x, net.token), "class token": _class_token}


def _attending(name):
    torch.manual_seed(0)
    parts = {n: nn.Linear(4, 4) for n in ("queries", "keys", "values", "head")}
    if name == "positions":
        parts |= {"inner": nn.Linear(1, 4), "outer": nn.Linear(4, 1)}
        return Wired(_biased_attention, **parts), ["inner.weight", "outer.weight"]
    return Wired(FORMS[name], **parts, token=nn.Parameter(torch.randn(1, 4))), ["queries.weight"]


TOKENS = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(1))


def test_path_methods_leave_them_out_and_name_them_and_others_keep_them_until_they_are_told():
    net, off = _attending("positions")
    with pytest.warns(PathexWarning, match="2 weights lie on no path from the images") as warned:
        result = pathex.prune(net, "px", sparsity=0.5, data=TOKENS, rounds=2)
    assert sum("on no path from the images" in str(warning.message) for warning in warned) == 1
    assert sorted(result.report.off_path) == off and not result.report.dead_layers
    assert set(result.mask) == {f"{name}.weight" for name in ("queries", "keys", "values", "head")}
    with pytest.warns(PathexWarning, match="inner.weight, outer.weight"):
        assert set(pathex.score(net, "px", TOKENS)) == set(result.mask)
    blind = pathex.prune(net, "magnitude", sparsity=0.5, data=TOKENS)
    assert set(off) < set(blind.mask) and sorted(blind.report.off_path) == off
    told = pathex.prune(net, "magnitude", sparsity=0.5, data=TOKENS, ignore=blind.report.off_path)
    with pytest.warns(PathexWarning, match="no path"):
        assert set(told.mask) == set(pathex.prune(net, "px", sparsity=0.5, data=TOKENS, rounds=1).mask)


@pytest.mark.parametrize("name", FORMS)
def test_a_query_of_a_constant_is_on_none(name):
    net, off = _attending(name)
    found = pathex.prune(net, "px", sparsity=0.5, data=TOKENS, rounds=2)
    assert found.report.off_path == off and not set(off) & set(found.mask) and not found.report.dead_layers


def test_a_start_mask_may_have_them_whole_and_not_cut():
    net, off = _attending("positions")
    names = pathex.prune(net, "magnitude", sparsity=0.1, data=TOKENS).mask
    whole = Mask({name: torch.ones_like(entry) if name in off else entry for name, entry in names.items()})
    result = pathex.prune(net, "px", sparsity=0.5, data=TOKENS, rounds=2, mask=whole)
    assert not set(off) & set(result.mask) and all((entry <= whole[n]).all() for n, entry in result.mask.items())
    assert set(pathex.score(net, "px", TOKENS, mask=whole)) == set(result.mask)
    cut = Mask({**names, "inner.weight": torch.zeros_like(names["inner.weight"])})
    for call, more in ((pathex.score, {}), (pathex.prune, {"sparsity": 0.5})):
        with pytest.raises(MaskMismatch, match=r"left as they are: inner\.weight.*ignore="):
            call(net, "px", data=TOKENS, mask=cut, **more)


def _roles(model, x):
    return roles(model, all_kept(prunable_weights(model)), x)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}, 32),
        ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 40)}, 32),
        pytest.param("vit_tiny_patch16_224", {"img_size": 64}, 64, marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", {"img_size": 56}, 56, marks=pytest.mark.slow),
        pytest.param("convnext_atto", {}, 64, marks=pytest.mark.slow),
        pytest.param("tf_efficientnet_lite0", {}, 64, marks=pytest.mark.slow),
    ],
)
def test_networks_are_cut_nowhere(name, options, size):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **options)
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    result = pathex.prune(model, "px", sparsity=0.9, data=x, rounds=3 if size == 32 else 5)
    mask, parts = result.mask, _roles(model, x[:1])
    assert mask.kept == round(0.1 * mask.total) and result.report.dead_layers == []
    for layer, part in ((layer, part) for layer, of_layer in parts.items() for part in of_layer):
        assert int((mask[layer] & part).sum()) >= max(1, int(0.1 * mask.density * int(part.sum()))), layer
    assert all(len(parts[layer]) == 3 for layer in mask if ".qkv." in layer), "query, key and value"


def _fused(net, x):
    """Attention and a gated unit, each with its weights in one."""
    q, k, v = net.qkv(x).chunk(3, -1)
    x = x + (q @ k.transpose(-2, -1)).softmax(-1) @ v
    value, gate = net.gated(x).chunk(2, -1)
    return net.head((value * gate.sigmoid()).mean(1))


def test_the_roles_of_fused_weights():
    model = Wired(_fused, qkv=nn.Linear(4, 12), gated=nn.Linear(4, 8), head=nn.Linear(4, 2))
    found = _roles(model, torch.randn(1, 3, 4))
    rows = {name: sorted(part.any(1).nonzero().flatten().tolist() for part in parts) for name, parts in found.items()}
    assert rows["qkv.weight"] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert rows["gated.weight"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert rows["head.weight"] == [[0, 1]]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    assert all(len(parts) == 1 and parts[0].all() for parts in _roles(plain, torch.randn(1, 3, 8, 8)).values())


def test_a_network_whose_weights_are_all_on_no_path_is_refused():
    token = nn.Parameter(torch.ones(2, 4))
    net = Wired(lambda net, x: net.head(net.token).mean(0) + x.mean((1, 2)), head=nn.Linear(4, 1), token=token)
    with pytest.raises(InvalidInput, match="depends on no prunable weight"):
        pathex.score(net, "px", torch.randn(8, 5, 4))
