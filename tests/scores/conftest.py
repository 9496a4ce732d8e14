"""A residual network with parameters and statistics that are not 1 and 0, and images for it, in float64."""

import pytest
from torch import Tensor, nn

import several_processes


@pytest.fixture
def model() -> nn.Module:
    return several_processes.network()


@pytest.fixture
def images() -> Tensor:
    return several_processes.images(12)[0]
