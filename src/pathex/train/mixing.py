"""Mixup and CutMix of torchvision, with draws that follow from seed and epoch."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pathex.train.feed import epoch_seed
from pathex.train.options import Batches


class Mixed:
    """Batches of another feed, each image and label mixed with the one before it in the batch.

    mixup (Zhang, Cisse, Dauphin, Lopez-Paz, ICLR 2018) adds the two images with weights drawn from Beta(alpha, alpha);
    CutMix (Yun, Han, Oh, Chun, Choe, Yoo, ICCV 2019) puts a rectangle of the one into the other. With both, each batch
    draws one of them, evenly. What is drawn follows from seed, epoch and number of the batch; of several processes
    each mixes within its share.

    Attributes:
        images: Number of images in one pass, over all processes.
        batches: Number of batches in one pass.
    """

    def __init__(self, feed: Batches, num_classes: int, *, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        """Prepare the transforms.

        Args:
            feed: Batches of normalised images (B, C, H, W) and labels (B,).
            num_classes: Number of classes.
            mixup: Alpha of mixup; 0 is none.
            cutmix: Alpha of CutMix; 0 is none. One of both is above 0.
        """
        from torchvision.transforms import v2

        kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self._mix = v2.RandomChoice([kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha])
        self._feed, self.images, self.batches = feed, feed.images, feed.batches

    def shuffled(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One training pass: mixed images (B, C, H, W), and the share of each class in them (B, K), float32."""
        for number, batch in enumerate(self._feed.shuffled(seed, epoch)):
            with torch.random.fork_rng(devices=[]):
                # The 1 keeps these draws apart from those of dropout.
                torch.default_generator.manual_seed(epoch_seed(seed, epoch, number, 1))
                mixed = self._mix(*batch)
            yield mixed

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in fixed order, not mixed."""
        return self._feed.in_order()
