"""The networks and images that scorers are measured on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathex import models

__all__ = ["Images", "network"]

_OWN_SIZE, _TINY_SIZE, _IMAGENET_SIZE = 32, 64, 224


@dataclass(frozen=True)
class Images:
    """The pruning set: normal numbers in place of images, with labels in turn.

    Attributes:
        count: How many.
        size: Their height and width; 0 is that which the network is for.
        classes: Number of classes.
    """

    count: int
    size: int
    classes: int

    def drawn(self, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and labels.

        Args:
            seed: Their seed.
            device: Where they are wanted.

        Returns:
            Images ``(N, 3, size, size)`` and labels ``(N,)``.
        """
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(self.count, 3, self.size, self.size, generator=generator)
        return images.to(device), (torch.arange(self.count) % self.classes).to(device)


def network(name: str, images: Images, seed: int, device: torch.device) -> tuple[nn.Module, Images]:
    """A network at its own initialization.

    Args:
        name: Name of a model of :mod:`pathex.models`.
        images: What it is to read.
        seed: Seed of the weights.
        device: Where it is wanted.

    Returns:
        The network, made for images of that size, and the images with their size filled in.
    """
    size = images.size or _own_size(name)
    model = _drawn(name, images.classes, seed)
    # Vision transformers hold an embedding for each place of the image.
    patches = getattr(model, "patch_embed", None)
    if getattr(patches, "img_size", None) not in {None, (size, size)}:
        model = _drawn(name, images.classes, seed, img_size=size)
    elif getattr(model, "image_size", size) != size:
        model = _drawn(name, images.classes, seed, image_size=size)
    return model.to(device), Images(images.count, size, images.classes)


def _drawn(name: str, classes: int, seed: int, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.create(name, num_classes=classes, **options)


def _own_size(name: str) -> int:
    if ":" in name:
        return _IMAGENET_SIZE
    return _TINY_SIZE if name.endswith("_tiny") else _OWN_SIZE
