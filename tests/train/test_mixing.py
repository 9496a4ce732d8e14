"""Mixed images and labels: what they are made of, and what their draws follow from."""

import pytest
import torch
import torch.nn.functional as F

from pathex.tasks.classification import squared_error
from pathex.train import Feed, Mixed
from training_in_processes import CPU, Images, Split


@pytest.fixture
def feed():
    return Feed(Images(Split(34, 0), Split(8, 1)), Split(34, 0), device=CPU, batch_size=8)


def mixed_as(new, images, before):
    """``cutmix``, if every pixel is one of both images, else ``mixup``; and the share of the images themselves."""
    pasted = (new != images).any(1)
    if torch.equal(torch.where(pasted[:, None], before, images), new):
        inside = pasted.any(0)
        assert torch.equal(inside, inside.any(1)[:, None] & inside.any(0))  # a rectangle, the same in every image
        assert (pasted == inside).all()
        return "cutmix", 1 - int(inside.sum()) / inside.numel()
    share = float(((new - before) / (images - before)).nanmedian())
    torch.testing.assert_close(new, share * images + (1 - share) * before, rtol=0, atol=1e-5)
    return "mixup", share


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_images_are_mixed_with_their_neighbour_and_labels_in_the_same_share(feed, mixup, cutmix):
    found = []
    mixed = Mixed(feed, 4, mixup=mixup, cutmix=cutmix)
    assert (mixed.images, mixed.batches) == (34, 5)
    for epoch in range(4):
        for (images, labels), (new, shares) in zip(feed.shuffled(0, epoch), mixed.shuffled(0, epoch), strict=True):
            kind, share = mixed_as(new, images, images.roll(1, 0))
            one, other = (F.one_hot(each, 4).float() for each in (labels, labels.roll(1)))
            torch.testing.assert_close(shares, share * one + (1 - share) * other, rtol=0, atol=1e-5)
            found.append((kind, share))
    expected = {name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha}
    assert {kind for kind, share in found if 0.01 < share < 0.99} == expected
    assert len({share for _, share in found}) > 5


def test_draws_follow_from_seed_and_epoch_and_nothing_else(feed):
    mixed = Mixed(feed, 4, mixup=1.0, cutmix=1.0)
    torch.manual_seed(1)
    first = list(mixed.shuffled(3, 2))
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))  # the global generator is where it was
    again, other, later = list(mixed.shuffled(3, 2)), list(mixed.shuffled(4, 2)), list(mixed.shuffled(3, 3))
    assert all(torch.equal(one, two) for pair in zip(first, again, strict=True) for one, two in zip(*pair, strict=True))
    assert not torch.equal(first[0][1], other[0][1]) and not torch.equal(first[0][1], later[0][1])
    plain = zip(feed.in_order(), mixed.in_order(), strict=True)
    assert all(torch.equal(one[0], two[0]) and torch.equal(one[1], two[1]) for one, two in plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_losses_take_shares_of_classes(dtype):
    source = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, 3, generator=source).to(dtype)
    labels, others = torch.randint(3, (5,), generator=source), torch.randint(3, (5,), generator=source)
    shares = 0.3 * F.one_hot(labels, 3) + 0.7 * F.one_hot(others, 3)
    loss = torch.nn.CrossEntropyLoss()
    expected = 0.3 * loss(outputs, labels) + 0.7 * loss(outputs, others)
    torch.testing.assert_close(loss(outputs, shares).to(dtype), expected, rtol=2e-2, atol=1e-2)
    pieces = [(outputs[i, k] - shares[i, k].to(dtype)).square() for i in range(5) for k in range(3)]
    torch.testing.assert_close(squared_error(outputs, shares), sum(pieces) / 15, rtol=2e-2, atol=1e-2)
    assert torch.equal(squared_error(outputs, labels), squared_error(outputs, F.one_hot(labels, 3).float()))
