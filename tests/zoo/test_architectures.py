"""Scorers on the architectures of the zoo: a sample by default, all of them with ``slow``.

`scripts/zoo.py` does the same in many processes and writes the committed table.
"""

import pytest

import pathex
from benchmarks.zoo.catalogue import SEGMENTATION, build, catalogue
from benchmarks.zoo.table import EXTRA, SIX, plan
from benchmarks.zoo.trial import trial

SAMPLE = (
    "torchvision:squeezenet1_1",
    "timm:test_efficientnet",
    "timm:test_nfnet",
    "timm:test_vit",
    "timm:starnet_s050",
)
BY_MODEL = {architecture.model: architecture for architecture in catalogue()}
WORK_ANYWHERE = frozenset({"random", "magnitude", "snip", "grasp", "ntk-diagonal"})


def _assert_works(architecture, name, rounds, *, may_refuse):
    network, x, y = build(architecture)
    found = trial(network, x, y, name, rounds=rounds)
    assert found.outcome in ({"ok", "refused"} if may_refuse else {"ok"}), f"{name}: {found.message}"


@pytest.mark.parametrize("name", [*SIX, *EXTRA])
@pytest.mark.parametrize("model", SAMPLE)
def test_a_sample(model, name):
    _assert_works(BY_MODEL[model], name, 1 if name in EXTRA else 2, may_refuse=name == "synflow")


@pytest.mark.parametrize("name", ["random", "snip", "px"])
def test_segmentation(name):
    _assert_works(BY_MODEL[f"{SEGMENTATION}lraspp_mobilenet_v3_large"], name, 1, may_refuse=False)


@pytest.mark.slow
@pytest.mark.parametrize("model", BY_MODEL)
def test_all(model):
    for name, rounds in plan(BY_MODEL[model], pathex.methods()).items():
        _assert_works(BY_MODEL[model], name, rounds, may_refuse=name not in WORK_ANYWHERE)
