"""A residual network with parameters and statistics that are not 1 and 0, and images for it, in float64."""

import pytest

import several_processes


@pytest.fixture
def model():
    return several_processes.network()


@pytest.fixture
def images():
    return several_processes.images(12)[0]
