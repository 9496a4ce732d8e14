"""Scores of a ResNet-20 against the reference file in the folder named by PATHEX_GOLDEN."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pathex
from brute_force.cases import assert_close
from pathex import models

FOLDER = os.environ.get("PATHEX_GOLDEN")

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not FOLDER, reason="PATHEX_GOLDEN names no folder"),
]

CASES = {
    "px_gated_calibrated": ("px", {}),
    "px_gated_eval": ("px", {"calibration": "running"}),
    "px_literal_calibrated": ("px-literal", {}),
    "px_literal_eval": ("px-literal", {"calibration": "running"}),
    "px_cvpr24": ("px-cvpr24", {"squared_norms": ["*.shortcut.1"]}),
    "synflow": ("synflow", {"shifts": "released"}),
    "snip": ("snip", {}),
    "grasp": ("grasp", {}),
}


@pytest.fixture(scope="module")
def golden():
    return load_file(Path(str(FOLDER)) / "resnet20_w4.safetensors")


@pytest.fixture(scope="module")
def model(golden):
    model = models.create("resnet20", width=4).double()
    state = part(golden, "state")
    # The reference scales identity shortcuts by ones; here they are plain.
    own = {name: entry for name, entry in state.items() if name in model.state_dict()}
    assert all(entry.eq(1).all() for name, entry in state.items() if name not in own)
    model.load_state_dict(own, strict=False)
    return model.eval()


def part(golden, prefix):
    return {name.removeprefix(f"{prefix}."): entry for name, entry in golden.items() if name.startswith(f"{prefix}.")}


def normalised(scores):
    whole = sum(float(score.sum()) for score in scores.values())
    return {name: score / whole for name, score in scores.items()}


def test_the_network_is_the_same(model, golden):
    with torch.no_grad():
        torch.testing.assert_close(model(golden["x"]), golden["logits.eval"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("key", CASES)
def test_scores_equal_the_reference(key, model, golden):
    method, options = CASES[key]
    found = normalised(pathex.score(model, method, [(golden["x"], golden["y"])], **options))
    expected = part(golden, key)
    expected = normalised({f"{name.removesuffix('.weight')}.weight": entry for name, entry in expected.items()})
    assert_close(found, expected, 1e-9)
