"""A network on images of any size: overlapping windows whose outputs are averaged."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin that cover a length; the last ends where the length does."""
    return [*range(0, size - window, stride), max(0, size - window)]


class SlidingWindow(nn.Module):
    """A segmentation network on images of any size."""

    def __init__(self, network: nn.Module, window: int, stride: int, side: int, at_once: int = 1) -> None:
        super().__init__()
        self.network = network
        self.window, self.stride, self.side, self.at_once = window, stride, side, at_once
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W)."""
        window, (count, _, height, width) = self.window, images.shape
        # Zeros are the mean colour of normalised images; what the network takes beyond the window is padded too.
        padded = F.pad(images, (0, max(0, window - width), 0, max(0, window - height)))
        starts = [window_starts(size, window, self.stride) for size in padded.shape[2:]]
        corners = list(product(*starts))
        total: Tensor | None = None
        visits = padded.new_zeros(padded.shape[2:])
        for first in range(0, len(corners), self.at_once):
            part = corners[first : first + self.at_once]
            tiles = torch.cat([padded[:, :, top : top + window, left : left + window] for top, left in part])
            margin = self.side - window
            logits = self.network(F.pad(tiles, (0, margin, 0, margin)))[:, :, :window, :window]
            if total is None:
                total = logits.new_zeros(count, logits.shape[1], *padded.shape[2:])
            for (top, left), tile in zip(part, logits.split(count), strict=True):
                total[:, :, top : top + window, left : left + window] += tile
                visits[top : top + window, left : left + window] += 1
        assert total is not None, "there is at least one window"
        return (total / visits)[:, :, :height, :width]
