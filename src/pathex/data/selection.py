"""Which images: the pruning set, and the validation images cut from training."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from pathex.data.images import ImageData
from pathex.errors import InvalidInput, check_integer


@dataclass(frozen=True, eq=False)
class PruningSet:
    """The images that scores see.

    Attributes:
        images: Normalised images without augmentation, float32 (N, C, H, W).
        labels: Classes, int64 (N,).
        indices: Numbers of the images among the training images.
        hash: SHA-256 of indices, image bytes (before normalising) and labels, hexadecimal.
    """

    images: Tensor
    labels: Tensor
    indices: list[int]
    hash: str


def pruning_set(data: ImageData, images_per_class: int, seed: int, indices_from: Tensor | None = None) -> PruningSet:
    """Draw the same number of training images from each class, in random order, on the CPU.

    Args:
        data: Where they are drawn from.
        images_per_class: At least 1.
        seed: Seed of the draw, which neither reads nor moves the global generator.
        indices_from: Training images that may be drawn, int64 (M,), in any order; None is all of them.

    Returns:
        The pruning set.

    Raises:
        InvalidInput: If a class has too few images, or an argument cannot be used.
    """
    check_integer("images_per_class", images_per_class)
    generator = seeded(seed)
    labels = data.train.labels
    allowed = torch.arange(len(labels)) if indices_from is None else indices_from.unique()
    if len(allowed) and not 0 <= int(allowed[0]) <= int(allowed[-1]) < len(labels):
        raise InvalidInput(f"indices_from must lie in 0..{len(labels) - 1}, got {int(allowed[0])}..{int(allowed[-1])}")
    drawn = []
    for number in range(data.num_classes):
        members = allowed[labels[allowed] == number]
        if len(members) < images_per_class:
            raise InvalidInput(
                f"images_per_class={images_per_class}: class {data.classes[number]!r} of {data.name!r} has only"
                f" {len(members)} training images to draw from"
            )
        drawn.append(members[torch.randperm(len(members), generator=generator)[:images_per_class]])
    # Batches in class order would bias scorers that are defined on batch statistics.
    indices = torch.cat(drawn)[torch.randperm(images_per_class * data.num_classes, generator=generator)]
    images = data.train.images(indices).cpu()
    digest = content_hash(indices, images, labels[indices])
    return PruningSet(data.normalise(images), labels[indices], indices.tolist(), digest)


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for a draw."""
    check_integer("seed", seed, 0, 2**63 - 1)
    return torch.Generator().manual_seed(seed)


def content_hash(*parts: Tensor) -> str:
    """SHA-256 of the bytes of tensors, hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def validation_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Cut validation images from training images, with the classes in proportion.

    Args:
        labels: Class of each image, int64 (N,).
        fraction: Share of validation images, in [0, 1). They are ``round(fraction * N)``, rounded within classes by the
            largest remainder; each class keeps at least one training image.
        seed: Seed of the draw, which has a generator of its own.

    Returns:
        Numbers of the training images and of the validation images, int64, rising.

    Raises:
        InvalidInput: If the fraction is out of range, or so small that no image is left for validation.
    """
    if not 0 <= fraction < 1:
        raise InvalidInput(f"validation must be a fraction in [0, 1), got {fraction!r}")
    generator = seeded(seed)
    sizes = torch.bincount(labels)
    exact = sizes.double() * fraction
    quotas = exact.floor().long()
    missing = round(fraction * len(labels)) - int(quotas.sum())
    quotas[(quotas - exact).argsort(stable=True)[:missing]] += 1
    quotas = quotas.minimum((sizes - 1).clamp(min=0))
    if fraction > 0 and not quotas.any():
        raise InvalidInput(f"validation={fraction}: no image of {len(labels)} in {len(sizes)} classes is held out")
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for number, quota in enumerate(quotas.tolist()):
        members = (labels == number).nonzero().flatten()
        held_out[members[torch.randperm(len(members), generator=generator)[:quota]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
