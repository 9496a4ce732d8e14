"""Weights that the output is computed from, but on no path from the images: position biases, constant queries."""

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import Wired
from pathex.errors import InvalidInput, MaskMismatch, PathexWarning
from pathex.masks import Mask


def _biased_attention(net, x):
    """The weights of attention are moved by what a small network makes of the positions (Swin V2)."""
    positions = torch.arange(5.0)[:, None]
    bias = net.outer(net.inner(positions).relu()).mT  # (1, 5)
    shares = (net.queries(x) @ net.keys(x).mT + bias).softmax(-1)
    return net.head((shares @ net.values(x)).mean(1))


def _constant_query(net, x):
    """A learned query asks the images (attention pooling)."""
    shares = (net.queries(net.token) @ net.keys(x).mT).softmax(-1)
    return net.head((shares @ net.values(x)).mean(1))


def _class_token(net, x):
    """A token that stands before the images' asks them, and has seen none of them yet (CaiT)."""
    x = torch.cat((net.token.expand(len(x), 1, -1), x), 1)
    shares = (net.queries(x[:, :1]) @ net.keys(x).mT).softmax(-1)
    return net.head((shares @ net.values(x)).mean(1))


FORMS = {"query": _constant_query, "class token": _class_token}


def _network(name):
    torch.manual_seed(0)
    parts = {n: nn.Linear(4, 4) for n in ("queries", "keys", "values", "head")}
    if name == "positions":
        parts |= {"inner": nn.Linear(1, 4), "outer": nn.Linear(4, 1)}
        return Wired(_biased_attention, **parts), ["inner.weight", "outer.weight"]
    return Wired(FORMS[name], **parts, token=nn.Parameter(torch.randn(1, 4))), ["queries.weight"]


pytestmark = pytest.mark.filterwarnings("ignore:.*(no path|piecewise-linear):pathex.errors.PathexWarning")
X = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(1))


def test_masks_of_path_methods_leave_them_out_and_the_report_names_them():
    net, off = _network("positions")
    with pytest.warns(PathexWarning, match="2 weights lie on no path from the images") as warned:
        result = pathex.prune(net, "px", sparsity=0.5, data=X, rounds=2)
    assert sum("on no path from the images" in str(warning.message) for warning in warned) == 1
    assert sorted(result.report.off_path) == off and not result.report.dead_layers
    assert set(result.mask) == {f"{name}.weight" for name in ("queries", "keys", "values", "head")}
    with pytest.warns(PathexWarning, match="inner.weight, outer.weight"):
        assert set(pathex.score(net, "px", X)) == set(result.mask)


def test_other_methods_keep_them_until_they_are_told():
    net, off = _network("positions")
    blind = pathex.prune(net, "magnitude", sparsity=0.5, data=X)
    assert set(off) < set(blind.mask) and sorted(blind.report.off_path) == off
    told = pathex.prune(net, "magnitude", sparsity=0.5, data=X, ignore=blind.report.off_path)
    with pytest.warns(PathexWarning, match="no path"):
        assert set(told.mask) == set(pathex.prune(net, "px", sparsity=0.5, data=X, rounds=1).mask)


@pytest.mark.parametrize("name", FORMS)
def test_a_query_of_a_constant_is_on_none(name):
    net, off = _network(name)
    found = pathex.prune(net, "px", sparsity=0.5, data=X, rounds=2)
    assert found.report.off_path == off and not set(off) & set(found.mask) and not found.report.dead_layers


def test_a_start_mask_may_have_them_whole_and_not_cut():
    net, off = _network("positions")
    names = pathex.prune(net, "magnitude", sparsity=0.1, data=X).mask
    whole = Mask({name: torch.ones_like(entry) if name in off else entry for name, entry in names.items()})
    result = pathex.prune(net, "px", sparsity=0.5, data=X, rounds=2, mask=whole)
    assert not set(off) & set(result.mask) and not any((result.mask[n] & ~whole[n]).any() for n in result.mask)
    assert set(pathex.score(net, "px", X, mask=whole)) == set(result.mask)
    cut = Mask({**names, "inner.weight": torch.zeros_like(names["inner.weight"])})
    for call, more in ((pathex.score, {}), (pathex.prune, {"sparsity": 0.5})):
        with pytest.raises(MaskMismatch, match=r"left as they are: inner\.weight.*ignore="):
            call(net, "px", data=X, mask=cut, **more)


def test_a_network_whose_weights_are_all_on_no_path_is_refused():
    token = nn.Parameter(torch.ones(2, 4))
    net = Wired(lambda net, x: net.head(net.token).mean(0) + x.mean((1, 2)), head=nn.Linear(4, 1), token=token)
    with pytest.raises(InvalidInput, match="no prunable weight lies on a path"):
        pathex.score(net, "px", X)
