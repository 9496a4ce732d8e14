import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from pathex.data import AUGMENTATIONS, Augmentation, augment
from refusals import refused

FULL = {"min_scale": 0.2, "grayscale": 0.3, "jitter": 0.4, "hue": 0.3}


def fresh(seed):
    return torch.Generator().manual_seed(seed)


def pictures(*shape, seed=0, dtype=torch.uint8):
    return torch.randint(1, 256, shape, generator=fresh(seed)).to(dtype)


def image_by_image(images, kind, generator):
    """The obvious twin: the same draws, applied to one image at a time."""
    flips = torch.rand(len(images), generator=generator) < 0.5
    shifts = [(4, 4)] * len(images)
    if kind == "crop-flip":
        shifts = torch.randint(0, 9, (len(images), 2), generator=generator).tolist()
    out = []
    for image, flip, (top, left) in zip(images, flips, shifts, strict=True):
        window = F.pad(image, (4, 4, 4, 4))[:, top : top + image.shape[1], left : left + image.shape[2]]
        out.append(window.flip(2) if flip else window)
    return torch.stack(out)


@pytest.mark.parametrize("kind", ["flip", "crop-flip"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_equals_the_loop(kind, dtype):
    images = pictures(16, 3, 7, 9, dtype=dtype)
    changed = augment(images, kind, fresh(5))
    assert changed.dtype == dtype
    assert torch.equal(changed, image_by_image(images, kind, fresh(5)))
    assert augment(images, "none", fresh(5)) is images
    assert augment(images[:0], kind, fresh(5)).shape == (0, 3, 7, 9)


@pytest.mark.parametrize(("kind", "options"), [("flip", {}), ("crop-flip", {}), ("resized-crop", FULL)])
def test_moves_only_its_own_generator_and_a_part_of_a_batch_is_what_it_is_in_the_whole(kind, options):
    before, images, generator = torch.get_rng_state(), pictures(13, 3, 20, 20), fresh(0)
    original = images.clone()
    first, second = (augment(images, kind, generator, **options) for _ in range(2))
    assert not torch.equal(first, second)
    assert (first.shape, first.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, original)
    assert torch.equal(before, torch.get_rng_state())
    augmentation = Augmentation.of(kind, options)
    draws = augmentation.draw(13, fresh(0))
    assert torch.equal(first, augmentation.apply(images, draws))
    for part in torch.arange(13).tensor_split(3):
        some = augmentation.apply(images[part], {name: values[part] for name, values in draws.items()})
        assert torch.equal(some, first[part])


def test_resized_crop_is_the_published_recipe():
    steps = Augmentation.of("resized-crop", {**FULL, "max_ratio": 1.5}).transform(8, 3).transforms
    crop, grey, jitter, flip = steps
    kinds = (v2.RandomResizedCrop, v2.RandomGrayscale, v2.ColorJitter, v2.RandomHorizontalFlip)
    assert tuple(map(type, steps)) == kinds
    assert (tuple(crop.size), crop.scale, crop.ratio, crop.antialias) == ((8, 8), (0.2, 1.0), (1 / 1.5, 1.5), True)
    assert (grey.p, flip.p) == (0.3, 0.5)
    assert [list(getattr(jitter, name)) for name in ("brightness", "contrast", "saturation")] == [[0.6, 1.4]] * 3
    assert list(jitter.hue) == [-0.3, 0.3]
    plain = Augmentation.of("resized-crop").transform(8, 3).transforms[0]
    assert plain.scale == (0.08, 1.0)
    assert plain.ratio == pytest.approx((3 / 4, 4 / 3))


def test_less_of_the_image_the_smaller_the_least_scale_and_grey_for_a_share():
    images = pictures(16, 3, 9, 9)
    same = augment(images, "resized-crop", fresh(0), min_scale=1.0, max_ratio=1)
    mirrored = [torch.equal(image, old.flip(2)) for image, old in zip(same, images, strict=True)]
    assert 0 < sum(mirrored) < 16
    assert all(turned or torch.equal(*pair) for turned, *pair in zip(mirrored, same, images, strict=True))
    ramp = torch.arange(64, dtype=torch.float32).expand(200, 1, 64, 64)
    cut = (augment(ramp, "resized-crop", fresh(0), min_scale=scale) for scale in (0.9, 0.5, 0.05))
    spans = [(out.amax(3) - out.amin(3)).mean().item() for out in cut]
    assert spans == sorted(spans, reverse=True)
    images = pictures(200, 3, 5, 5)
    got = augment(images, "resized-crop", fresh(1), min_scale=1.0, max_ratio=1, grayscale=0.3)
    grey = (got == got[:, :1]).flatten(1).all(1)
    assert 0.2 < grey.float().mean() < 0.4
    expected = transforms.rgb_to_grayscale(images[grey], 3)
    flipped = torch.where((got[grey] == expected).flatten(1).all(1)[:, None, None, None], expected, expected.flip(3))
    assert torch.equal(got[grey], flipped)
    assert augment(images[:5, :1], "resized-crop", fresh(0), **FULL).shape == (5, 1, 5, 5)
    with refused("1 or 3 channels, got 2"):
        augment(images[:5, :2], "resized-crop", fresh(0), **FULL)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("flip", {"jitter": 0.1}, "unknown option of augmentation 'flip': 'jitter'. Known: none"),
        ("resized-crop", {"scale": 0.1}, "'scale'.* Known: grayscale, hue, jitter, max_ratio, min_scale"),
        ("resized-crop", {"min_scale": 0}, r"'min_scale' of 'resized-crop' must be a number in \[0.0001, 1\], got 0"),
        ("resized-crop", {"grayscale": "no"}, "got 'no'"),
        ("resized-crop", {"hue": 0.6}, r"\[0, 0.5\]"),
        ("resized-crop", {"jitter": True}, "got True"),
        ("mixup", {}, f"unknown augmentation 'mixup'. Known: {', '.join(sorted(AUGMENTATIONS))}"),
    ],
)
def test_bad_options(kind, options, message):
    with refused(message):
        Augmentation.of(kind, options)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "options", "step"), [("crop-flip", {}, 0), ("resized-crop", {"min_scale": 0.2}, 1)])
def test_cuda_changes_like_the_cpu(kind, options, step):
    images = pictures(32, 3, 24, 24)
    there, here = (augment(part, kind, fresh(5), **options) for part in (images.cuda(), images))
    assert there.is_cuda
    assert (there.cpu().int() - here.int()).abs().max() <= step
