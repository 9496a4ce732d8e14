"""Rounds that compute kept weights alone score as those that compute all."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import pathex
import training_networks as networks
from brute_force.cases import assert_close
from pathex.scores import Problem, find, kept
from pathex.scores.kept import KeptLayers

pytest.importorskip("numba")

NETWORKS = {
    **{f"resnet-{way}": partial(networks.resnet, way, depth=2) for way in ("project", "pad", "inplace")},
    **{name: getattr(networks, name) for name in ("vgg", "mobilenet", "densenet", "preactivated", "shared", "looks")},
    "biases": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, (1, 3), dilation=2), nn.LeakyReLU(0.1), nn.Conv2d(4, 6, 2, 3),
        nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 5),
    ),
    "tracking nothing": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    ),
    "convolutions": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3, padding="same")),
    "signs": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), networks.Block(4, 4), nn.ReLU(), nn.Conv2d(4, 5, 9)),
}  # fmt: skip


@pytest.fixture
def always(monkeypatch):
    """Kernels for dense masks too: sparse ones leave nothing of networks as narrow as these."""
    monkeypatch.setattr(kept, "_SHARE", 1.0)


@pytest.fixture
def planned(monkeypatch):
    """The masks that kernels were planned for."""
    found, threads = [], torch.get_num_threads()
    plan = KeptLayers.__init__

    def noted(self, graph, mask):
        found.append(mask)
        plan(self, graph, mask)

    monkeypatch.setattr(KeptLayers, "__init__", noted)
    torch.set_num_threads(2)
    yield found
    torch.set_num_threads(threads)


def problem(name="resnet-project", seed=0, density=0.2, images=35, dtype=torch.float64, **how):
    torch.manual_seed(seed)
    model = NETWORKS[name]().to(dtype).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.normal_(module.bias)
    weights = {n: p.detach() for n, p in model.named_parameters() if p.dim() > 1}
    mask = {n: torch.rand(p.shape) < density for n, p in weights.items()}
    x = torch.randn(images, 3, 12, 12, dtype=dtype)
    return Problem(model, weights, [(x, None)], mask=mask, round=50, **how)


def without_kernels(monkeypatch, score):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "numba", None)
        return score()


@pytest.mark.filterwarnings("ignore:read as one:pathex.errors.PathexWarning")
@pytest.mark.parametrize(
    ("name", "label"),
    # What `looks` gives does not depend on signs, and its gates have no open reading.
    [(name, label) for name in NETWORKS for label in (["px"] if name == "looks" else ["px", "px-literal", "ntk-sap"])],
)
def test_scores_are_those_of_all_weights(name, label, always, planned, monkeypatch):
    given, method = problem(name, seed=len(label), density=0.5), find(label)
    if label == "px":
        method = replace(method, redraw=True)
    found = method.score(given)
    assert len(planned) == 1
    whole = without_kernels(monkeypatch, lambda: method.score(replace(given, memo={})))
    assert_close(found, whole, 1e-8)


@pytest.mark.parametrize("calibration", ["batch", "running"])
@pytest.mark.parametrize("label", ["px", "ntk-sap"])
def test_in_parts_and_with_either_statistics(label, calibration, planned, monkeypatch):
    given, method = problem(memory=1_500_000), replace(find(label), calibration=calibration)
    assert len(list(given.micro_batches(50_000))) > 1
    found = method.score(given)
    assert len(planned) == 1
    whole = without_kernels(monkeypatch, lambda: method.score(replace(given, memo={}, memory=None)))
    assert_close(found, whole, 1e-8)


@pytest.mark.parametrize("label", ["px", "ntk-sap"])
def test_norms_that_store_nothing_take_the_statistics_of_each_pass(label, always, planned, monkeypatch):
    given, method = problem("tracking nothing"), replace(find(label), calibration="running")
    found = method.score(given)
    assert len(planned) == 1
    assert_close(found, without_kernels(monkeypatch, lambda: method.score(replace(given, memo={}))), 1e-8)


@pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse")
@pytest.mark.parametrize("label", ["px", "ntk-sap"])
def test_a_prune_keeps_the_same_weights(label, planned, monkeypatch):
    given = problem()
    prune = partial(
        pathex.prune, given.model, label, sparsity=0.97, data=given.batches[0][0], rounds=40, progress=False
    )
    found = prune().mask
    assert 3 < len(planned) < 25  # planned again as the mask shrinks, not in each round
    assert found == without_kernels(monkeypatch, lambda: prune().mask)


@pytest.mark.parametrize(
    "how", [{"round": 9}, {"mask": None}, {"density": 0.9}, {"images": 31}], ids=lambda how: next(iter(how))
)
def test_early_dense_and_small_rounds_compute_all_weights(how, planned):
    changed = {name: how[name] for name in how.keys() & {"round", "mask"}}
    given = replace(problem(**{name: how[name] for name in how.keys() - changed.keys()}), **changed)
    find("px").score(given)
    find("ntk-sap").score(given)
    assert not planned


def test_kernels_hold_for_masks_within_theirs(planned):
    given, method = problem(), find("px")
    fewer, other = dict(given.mask), dict(given.mask)
    name = next(iter(fewer))
    fewer[name] = fewer[name].clone().index_put_(tuple(fewer[name].nonzero()[:1].T), torch.tensor(False))
    other[name] = other[name].clone().index_put_(tuple((~other[name]).nonzero()[:1].T), torch.tensor(True))
    method.score(given)
    method.score(replace(given, mask=fewer))
    assert len(planned) == 1
    method.score(replace(given, mask=other))
    assert planned == [given.mask, other]


@pytest.mark.parametrize("label", ["px", "ntk-sap"])
@pytest.mark.parametrize("farthest", [0, 40_000])
def test_layers_whose_images_are_too_large_have_no_kernels(label, farthest, planned, monkeypatch):
    monkeypatch.setattr("pathex.sparse.planes._FARTHEST", farthest)
    given, method = problem(), find(label)
    found = method.score(given)
    assert len(planned) == 1 and (farthest > 0) == bool(given.memo["kept layers"]._layers)
    assert len(given.memo["kept layers"]._layers) < sum(mask.ndim == 4 for mask in given.mask.values())
    assert_close(found, without_kernels(monkeypatch, lambda: method.score(replace(given, memo={}))), 1e-8)


def test_threads_of_torch_are_as_before(planned):
    find("px").score(problem())
    assert planned and torch.get_num_threads() == 2
