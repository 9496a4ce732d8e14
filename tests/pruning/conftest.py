import pytest
import torch

from pathex.models import CifarResNet


@pytest.fixture
def model():
    torch.manual_seed(2)
    return CifarResNet(8, num_classes=4, width=2)


@pytest.fixture
def images():
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
