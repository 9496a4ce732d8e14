"""Augmentation of batches against a loop over single images."""

import pytest
import torch
import torch.nn.functional as F

from pathex.data import AUGMENTATIONS, augment
from pathex.errors import InvalidInput


def image_by_image(images, kind, generator):
    """The obvious twin: the same draws, applied to one image at a time."""
    flips = torch.rand(len(images), generator=generator) < 0.5
    shifts = torch.randint(0, 9, (2, len(images), 1), generator=generator) if kind == "crop-flip" else None
    out = []
    for number, image in enumerate(images):
        window = image
        if shifts is not None:
            top, left = int(shifts[0, number]), int(shifts[1, number])
            window = F.pad(image, (4, 4, 4, 4))[:, top : top + image.shape[1], left : left + image.shape[2]]
        out.append(window.flip(2) if flips[number] else window)
    return torch.stack(out)


@pytest.mark.parametrize("kind", ["flip", "crop-flip"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_equals_the_loop(kind, dtype):
    images = torch.randint(1, 256, (16, 3, 7, 9), generator=torch.Generator().manual_seed(1)).to(dtype)
    changed = augment(images, kind, torch.Generator().manual_seed(5))
    assert changed.dtype == dtype
    assert torch.equal(changed, image_by_image(images, kind, torch.Generator().manual_seed(5)))


def test_every_window_occurs_in_both_directions():
    image = torch.arange(1, 17, dtype=torch.uint8).view(1, 1, 4, 4)
    changed = augment(image.expand(3000, -1, -1, -1), "crop-flip", torch.Generator().manual_seed(0))
    # 7 x 7 of the 81 windows show some of the image, the others are black.
    assert len(changed.flatten(1).unique(dim=0)) == 2 * 49 + 1


def test_moves_only_its_own_generator_and_not_the_images():
    before, images = torch.get_rng_state(), torch.ones(4, 1, 5, 5)
    generator = torch.Generator().manual_seed(0)
    first, second = augment(images, "crop-flip", generator), augment(images, "crop-flip", generator)
    assert not torch.equal(first, second)
    assert images.eq(1).all()
    assert torch.equal(before, torch.get_rng_state())


def test_none_and_empty():
    images = torch.ones(2, 1, 3, 3)
    assert augment(images, "none", torch.Generator()) is images
    assert augment(images[:0], "crop-flip", torch.Generator()).shape == (0, 1, 3, 3)


def test_unknown_kind():
    with pytest.raises(InvalidInput, match=f"'mixup'. Known: {', '.join(sorted(AUGMENTATIONS))}"):
        augment(torch.ones(1, 1, 2, 2), "mixup", torch.Generator())


@pytest.mark.gpu
def test_cuda_draws_the_same():
    images = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8)
    there = augment(images.cuda(), "crop-flip", torch.Generator().manual_seed(2))
    assert there.is_cuda
    assert torch.equal(there.cpu(), augment(images, "crop-flip", torch.Generator().manual_seed(2)))
