from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from brute_force import segmentation as twin
from pathex.tasks.segmentation import SlidingWindow, window_starts


@pytest.fixture
def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 5, padding=2)).double().eval()


@pytest.mark.parametrize("size", [(13, 17), (8, 8), (5, 20), (20, 6), (4, 3), (8, 9)])
@pytest.mark.parametrize(("stride", "side", "at_once"), [(8, 8, 1), (5, 8, 3), (3, 11, 64)])
def test_every_pixel_is_the_mean_over_its_windows(network, size, stride, side, at_once):
    images = torch.randn(2, 2, *size, dtype=torch.float64)

    def plain(tile):
        with torch.no_grad():
            return network(torch.from_numpy(tile)[None])[0].numpy()

    with torch.no_grad():
        found = SlidingWindow(network, 8, stride, side, at_once)(images)
    assert found.shape == (2, 3, *size)
    for image, logits in zip(images.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(logits, twin.averaged(plain, image, 8, stride, side, 3), atol=1e-12)


def test_a_small_image_is_seen_once_padded_with_zeros_in_the_mode_of_the_network(network):
    image = torch.randn(1, 2, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        direct = network(nn.functional.pad(image, (0, 1, 0, 2)))[:, :, :6, :7]
        assert torch.equal(SlidingWindow(network, 8, 3, 8)(image), direct)
    assert not SlidingWindow(network, 8, 8, 8).training
    assert SlidingWindow(network.train(), 8, 8, 8).training


def test_windows_reach_the_end_and_not_beyond():
    for size, window in product(range(1, 30), range(1, 12)):
        for stride in range(1, window + 1):
            starts = window_starts(size, window, stride)
            assert starts == sorted(set(starts))
            covered = {place for start in starts for place in range(start, start + window)}
            assert covered == set(range(max(size, window)))
