"""Settings of runs that take a second."""

import pytest

from small_images import write_images


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "tiny.npz")


@pytest.fixture(scope="session")
def small(small_data):
    return {
        "method": "magnitude",
        "sparsity": 0.75,
        "model_options": {"width": 2},
        "data": small_data,
        "rounds": 1,
        "images_per_class": 1,
        "epochs": 2,
        "batch_size": 32,
        "device": "cpu",
    }
