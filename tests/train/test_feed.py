import torch

from pathex.train import Feed

CPU = torch.device("cpu")


def collected(batches):
    pairs = list(batches)
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


def test_a_pass_in_order_gives_every_image_once(images):
    feed = Feed(images, images.train, device=CPU, batch_size=8)
    seen, labels = collected(feed.in_order())
    assert torch.equal(seen, images.normalise(images.train.data))
    assert torch.equal(labels, images.train.labels)
    assert (feed.images, feed.batches) == (34, 5)


def test_an_epoch_follows_from_seed_and_number_alone(images):
    feed = Feed(images, images.train, device=CPU, batch_size=8)
    first, _ = collected(feed.shuffled(0, 1, "crop-flip"))
    torch.rand(3)
    assert torch.equal(first, collected(feed.shuffled(0, 1, "crop-flip"))[0])
    assert not torch.equal(first, collected(feed.shuffled(0, 2, "crop-flip"))[0])
    assert not torch.equal(first, collected(feed.shuffled(1, 0, "crop-flip"))[0])


def test_a_shuffled_pass_is_a_permutation(images):
    feed = Feed(images, images.train, device=CPU, batch_size=8)
    seen, labels = collected(feed.shuffled(0, 1, "none"))
    expected = images.normalise(images.train.data)
    rows = (seen.flatten(1)[:, None] == expected.flatten(1)[None]).all(-1).int().argmax(1)
    assert sorted(rows.tolist()) == list(range(34))
    assert rows.tolist() != list(range(34))
    assert torch.equal(labels, images.train.labels[rows])


def test_a_split_read_by_index_gives_the_same_batches(images, lazy_images):
    indices = torch.arange(3, 30)
    held, lazy = (Feed(data, data.train, device=CPU, batch_size=8, indices=indices) for data in (images, lazy_images))
    for expected, got in zip(held.shuffled(0, 1, "flip"), lazy.shuffled(0, 1, "flip"), strict=True):
        assert torch.equal(expected[0], got[0])
        assert torch.equal(expected[1], got[1])


def test_a_single_image_left_over_joins_the_batch_before(images):
    feed = Feed(images, images.train, device=CPU, batch_size=11)
    assert [len(labels) for _, labels in feed.in_order()] == [11, 11, 12]
    assert feed.batches == 3
