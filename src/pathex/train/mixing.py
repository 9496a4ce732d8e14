"""Mixup and CutMix of torchvision, with draws that follow from seed and epoch."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pathex.train.feed import epoch_seed
from pathex.train.options import Batches


class Mixed:
    """Batches of another feed, each image and label mixed with the one before it in the batch.

    By mixup (Zhang et al., ICLR 2018), CutMix (Yun et al., ICCV 2019), or one of both for each batch. Draws follow from
    seed, epoch and number of the batch alone; of several processes each mixes its own share.
    """

    def __init__(self, feed: Batches, num_classes: int, *, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        """Prepare the transforms, with the alphas of their Beta distributions, of which one is above 0."""
        from torchvision.transforms import v2

        kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self._mix = v2.RandomChoice([kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha])
        self._feed, self.images, self.batches, self.in_order = feed, feed.images, feed.batches, feed.in_order

    def shuffled(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One training pass: mixed images (B, C, H, W), and the share of each class in them (B, K), float32."""
        for number, batch in enumerate(self._feed.shuffled(seed, epoch)):
            with torch.random.fork_rng(devices=[]):
                # The 1 keeps these draws apart from those of dropout.
                torch.default_generator.manual_seed(epoch_seed(seed, epoch, number, 1))
                mixed = self._mix(*batch)
            yield mixed
