import pytest
import torch

from pathex.data import ArraySplit, ImageData, Split
from pathex.data.images import channel_statistics
from pathex.data.source import Source, finish


def split_of(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 2, 3, 3), generator=generator, dtype=torch.uint8)
    images[:, 1] //= 2
    return ArraySplit(images, torch.arange(count) % 2)


@pytest.mark.parametrize("count", [1, 1024, 2500])
def test_statistics_over_several_chunks_in_any_order(count):
    split = split_of(count)
    found = channel_statistics(split)
    scaled = split.data.double() / 255
    torch.testing.assert_close(found[0], scaled.mean((0, 2, 3)).float())
    torch.testing.assert_close(found[1], scaled.std((0, 2, 3), correction=0).float())
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    shuffled = channel_statistics(ArraySplit(split.data[order], split.labels[order]))
    assert all(torch.equal(*pair) for pair in zip(found, shuffled, strict=True))


def test_a_data_set_knows_its_images():
    split = split_of(6)
    assert isinstance(split, Split)
    assert torch.equal(split.images(torch.tensor([3, 0, 3])), split.data[[3, 0, 3]])
    data = finish(Source("random", split, split, ("even", "odd")))
    assert isinstance(data, ImageData)
    assert (data.num_classes, data.in_channels, data.image_size, data.augment) == (2, 2, 3, "crop-flip")


@pytest.mark.gpu
def test_images_normalise_where_they_are():
    split = split_of(6)
    data = finish(Source("random", split, split, ("even", "odd")))
    there = data.normalise(split.data.cuda())
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), data.normalise(split.data))
    assert ArraySplit(split.data.cuda(), split.labels).images(torch.tensor([1])).is_cuda
