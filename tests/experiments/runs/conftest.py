"""Settings of a run that takes a second."""

import numpy as np
import pytest


@pytest.fixture
def settings(tmp_path):
    """Settings for 64 images of 8 pixels and a network of width 4."""
    draws = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 64), ("val", 8), ("test", 16)):
        arrays[f"{split}_images"] = draws.integers(256, size=(count, 8, 8, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 4)[:, None]
    np.savez(tmp_path / "tiny.npz", **arrays)
    return {
        "method": "magnitude",
        "sparsity": 0.75,
        "model": "resnet20",
        "model_options": {"width": 4},
        "data": f"npz:{tmp_path / 'tiny.npz'}",
        "rounds": 2,
        "images_per_class": 2,
        "epochs": 2,
        "batch_size": 16,
        "augment": "crop-flip",
        "device": "cpu",
        "out": str(tmp_path / "runs"),
    }
