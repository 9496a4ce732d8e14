"""resized-crop against the twin, against torchvision, and piece by piece."""

import math

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from brute_force import crops as twin
from pathex.data import Augmentation, augment
from pathex.data._colour import grey, jittered
from pathex.data._crops import boxes, resized_crops
from pathex.errors import InvalidInput

FULL = {"min_scale": 0.2, "grayscale": 0.3, "jitter": 0.4, "hue": 0.3}


def fresh(seed):
    return torch.Generator().manual_seed(seed)


def pictures(count, height, width, seed=0, dtype=torch.uint8):
    return torch.randint(256, (count, 3, height, width), generator=fresh(seed)).to(dtype)


@pytest.mark.parametrize("shape", [(9, 9), (7, 40), (40, 7), (300, 200)])
def test_boxes_equal_the_twin(shape):
    """Wide and tall images need several tries, or none fits."""
    draws = Augmentation.of("resized-crop", {"min_scale": 0.3}).draw(300, fresh(1))
    got = boxes(draws, *shape, 4 / 3).tolist()
    rows = zip(draws["area"].tolist(), draws["ratio"].tolist(), draws["corner"].tolist(), strict=True)
    assert got == [list(twin.box(*row, *shape, 4 / 3)) for row in rows]
    if shape == (7, 40):
        assert got.count([0, 15, 7, 9]) > 10  # the fallback in the centre


@pytest.mark.parametrize("shape", [(9, 9), (7, 40), (40, 7), (375, 500)])
def test_one_box_equals_its_row_of_the_boxes(shape):
    augmentation = Augmentation.of("resized-crop", {"min_scale": 0.3})
    draws = augmentation.draw(300, fresh(2))
    rows = boxes(draws, *shape, augmentation.max_ratio).tolist()
    assert [list(augmentation.cut(draws, place)(*shape)) for place in range(300)] == rows


def test_boxes_are_distributed_like_those_of_torchvision():
    """20,000 boxes of each: means of area, log ratio and corners agree within 5 standard errors."""
    count, shape = 20_000, (50, 70)
    draws = Augmentation.of("resized-crop", {"min_scale": 0.1}).draw(count, fresh(0))
    ours = boxes(draws, *shape, 4 / 3).double()
    crop = v2.RandomResizedCrop(10, scale=(0.1, 1.0))
    image = torch.zeros(3, *shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = [crop.make_params([image]) for _ in range(count)]
    theirs = torch.tensor([[box[name] for name in ("top", "left", "height", "width")] for box in found]).double()
    for values in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: (b[:, 3] / b[:, 2]).log(),
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        first, second = values(ours), values(theirs)
        error = math.sqrt((first.var() + second.var()).item() / count)
        assert abs(first.mean() - second.mean()) < 5 * error
        assert first.std() / second.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("size", [3, 8, 17])
def test_crops_equal_the_twin_and_torchvision(size):
    images = pictures(12, 11, 14, seed=size, dtype=torch.float64)
    where = boxes(Augmentation.of("resized-crop").draw(12, fresh(size)), 11, 14, 4 / 3)
    got = resized_crops(images, where, size)
    for image, place, out in zip(images, where.tolist(), got, strict=True):
        expected = [twin.resized_crop(channel.tolist(), place, size) for channel in image]
        torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)
        theirs = transforms.resized_crop(image.float(), *place, [size, size], antialias=True)
        torch.testing.assert_close(out.float(), theirs, rtol=0, atol=2e-4)  # theirs is float32, of values up to 255
    whole = resized_crops(images.to(torch.uint8), where, size)
    assert torch.equal(whole, resized_crops(images.float(), where, size).round().to(torch.uint8))


def test_colours_equal_the_twin():
    images = pictures(16, 4, 5, dtype=torch.float64)
    images[0] = 128  # without hue
    images[1] = 0
    draws = Augmentation.of("resized-crop", {"jitter": 0.6, "hue": 0.5}).draw(16, fresh(2))
    factors = torch.cat([draws["factor"], draws["hue"]], 1)
    got = jittered(images, factors, draws["order"]) / 255
    for image, factor, order, out in zip(images, factors, draws["order"], got, strict=True):
        pixels = [tuple(pixel) for pixel in (image / 255).flatten(1).T.tolist()]
        expected = torch.tensor(twin.jitter(pixels, factor.tolist(), order.tolist()), dtype=torch.float64).T
        # float32: a hue is divided by the span of the channels, 1/255 at least before the changes.
        torch.testing.assert_close(out.flatten(1), expected, rtol=0, atol=1e-4)
    assert len(draws["order"].unique(dim=0)) > 5


@pytest.mark.parametrize("number", range(4))
def test_each_colour_change_equals_torchvision(number):
    images, factor = pictures(3, 6, 6, dtype=torch.float32), 0.3 if number == 3 else 1.4
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(3, 1)
    factors[:, number] = factor
    change = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")[number]
    expected = getattr(transforms, change)(images / 255, factor)
    got = jittered(images, factors, torch.arange(4).repeat(3, 1)) / 255
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_colours_do_not_depend_on_the_rest_of_the_batch():
    images = pictures(21, 6, 6)
    draws = Augmentation.of("resized-crop", {"jitter": 0.6, "hue": 0.5}).draw(21, fresh(4))
    rows = (images, torch.cat([draws["factor"], draws["hue"]], 1), draws["order"])
    one_by_one = [jittered(*(values[place : place + 1] for values in rows)) for place in range(21)]
    assert torch.equal(jittered(*rows), torch.cat(one_by_one))


def test_grey_takes_the_colours_of_the_chosen_only():
    images = pictures(4, 5, 5)
    chosen = torch.tensor([True, False, True, False])
    got = grey(images, chosen)
    assert torch.equal(got[1::2], images[1::2])
    assert (got[::2] == got[::2, :1]).all()
    theirs = transforms.rgb_to_grayscale(images[::2].float(), 3)
    assert (got[::2].float() - theirs).abs().max() <= 0.51  # rounded


def test_a_part_of_a_batch_is_what_it_is_in_the_whole():
    images, augmentation = pictures(13, 20, 20), Augmentation.of("resized-crop", FULL)
    draws = augmentation.draw(13, fresh(3))
    whole = augmentation.apply(images, draws, size=16)
    for part in torch.arange(13).tensor_split(3):
        some = augmentation.apply(images[part], {name: values[part] for name, values in draws.items()}, size=16)
        assert torch.equal(some, whole[part])


def test_shape_type_and_the_images_themselves():
    images = pictures(5, 12, 12)
    before = images.clone()
    changed = augment(images, "resized-crop", fresh(0), **FULL)
    assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)
    assert not torch.equal(changed, images)
    single = augment(images[:, :1], "resized-crop", fresh(0), **FULL)
    assert single.shape == (5, 1, 12, 12)
    with pytest.raises(InvalidInput, match="1 or 3 channels, got 2"):
        augment(images[:, :2], "resized-crop", fresh(0), **FULL)


def test_the_whole_image_when_nothing_may_be_left_out():
    images = pictures(4, 9, 9)
    same = augment(images, "resized-crop", fresh(0), min_scale=1.0, max_ratio=1)
    flipped = Augmentation("resized-crop").draw(4, fresh(0))["flip"]
    assert torch.equal(same, torch.where(flipped[:, None, None, None], images.flip(3), images))


def test_gradually_less_of_the_image():
    """With a small least scale the parts are smaller: a gradient image spans less."""
    ramp = torch.arange(64, dtype=torch.float32).expand(500, 1, 64, 64)
    spans = [
        (out.amax(3) - out.amin(3)).mean().item()
        for out in (augment(ramp, "resized-crop", fresh(0), min_scale=scale) for scale in (0.9, 0.5, 0.05))
    ]
    assert spans == sorted(spans, reverse=True)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("flip", {"jitter": 0.1}, "unknown option 'jitter' of augmentation 'flip'. Known: none"),
        (
            "resized-crop",
            {"scale": 0.1},
            "unknown option 'scale' .* Known: min_scale, max_ratio, grayscale, jitter, hue",
        ),
        ("resized-crop", {"min_scale": 0}, r"'min_scale' of 'resized-crop' must be a number in \[0.0001, 1\], got 0"),
        ("resized-crop", {"grayscale": "no"}, "got 'no'"),
        ("resized-crop", {"hue": 0.6}, r"\[0, 0.5\]"),
        ("resized-crop", {"jitter": True}, "got True"),
        ("mixup", {}, "unknown augmentation 'mixup'"),
    ],
)
def test_bad_options(kind, options, message):
    with pytest.raises(InvalidInput, match=message):
        Augmentation.of(kind, options)


@pytest.mark.gpu
def test_cuda_changes_like_the_cpu():
    images = pictures(32, 24, 24)
    there, here = (augment(part, "resized-crop", fresh(5), **FULL) for part in (images.cuda(), images))
    assert there.is_cuda
    difference = (there.cpu().int() - here.int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.01  # rounding of sums in another order
