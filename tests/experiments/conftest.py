"""Settings of runs that take a second."""

import pytest

from small_images import write_images


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    return {
        "method": "magnitude",
        "sparsity": 0.75,
        "model_options": {"width": 2},
        "data": write_images(tmp_path_factory.mktemp("images") / "tiny.npz"),
        "rounds": 1,
        "images_per_class": 1,
        "epochs": 2,
        "batch_size": 32,
        "device": "cpu",
    }
