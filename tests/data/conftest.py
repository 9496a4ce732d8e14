"""Small data sets."""

import numpy as np
import pytest
import torch

from pathex.data import ArraySplit, ImageData


@pytest.fixture
def arrays():
    """Arrays of a valid archive: 3 classes, 12 + 6 colour images of 8 pixels."""
    generator = np.random.default_rng(0)
    return {
        "train_images": generator.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8),
        "train_labels": np.arange(12, dtype=np.uint8)[:, None] % 3,
        "test_images": generator.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        "test_labels": np.arange(6) % 3,
    }


@pytest.fixture
def toy():
    """4 classes of 10 images each, and one class more of 3."""
    labels = torch.tensor([0, 1, 2, 3] * 10 + [4] * 3)
    images = torch.arange(43, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 2, 4, 4)
    split = ArraySplit(images, labels)
    return ImageData(
        "toy", split, split, 5, tuple("abcde"), torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.2]), "none"
    )
