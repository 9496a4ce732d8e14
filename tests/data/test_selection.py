import hashlib

import pytest
import torch

from pathex.data import load, pruning_set, validation_split
from pathex.errors import InvalidInput


def test_pruning_set_is_balanced_without_repeats_and_normalised(toy):
    chosen = pruning_set(toy, 3, seed=0)
    assert chosen.labels.bincount().tolist() == [3] * 5
    assert chosen.labels.tolist() != sorted(chosen.labels.tolist())
    assert len(set(chosen.indices)) == 15
    indices = torch.tensor(chosen.indices)
    images, labels = toy.train.images(indices), toy.train.labels[indices]
    assert torch.equal(chosen.labels, labels)
    assert torch.equal(chosen.images, toy.normalise(images))
    whole = b"".join(part.numpy().tobytes() for part in (indices, images, labels))
    assert chosen.hash == hashlib.sha256(whole).hexdigest()


def test_pruning_set_depends_on_the_seed_alone(toy):
    torch.manual_seed(1)
    first, state = pruning_set(toy, 2, seed=7), torch.get_rng_state()
    torch.manual_seed(2)
    second = pruning_set(toy, 2, seed=7)
    assert (first.indices, first.hash) == (second.indices, second.hash)
    assert pruning_set(toy, 2, seed=8).hash != first.hash
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    expected = [879, 3246, 453, 4099, 3930, 3117, 4225, 3229, 4534, 189]
    assert pruning_set(load("fashion-mini"), 1, seed=0).indices == expected
    subset = torch.tensor([42, 41, *range(20), 40])  # in any order
    chosen = pruning_set(toy, 3, seed=0, indices_from=subset).indices
    assert set(chosen) <= set(subset.tolist())
    assert chosen == pruning_set(toy, 3, seed=0, indices_from=subset.flip(0)).indices


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 0), "class 'e' of 'toy' has only 3 training images"),
        ((1, 0, torch.arange(40)), "class 'e' of 'toy' has only 0"),
        ((1, 0, torch.tensor([], dtype=torch.int64)), "class 'a' of 'toy' has only 0"),
        ((1, 0, torch.tensor([5, 43])), r"must lie in 0..42, got 5..43"),
        ((0, 0), "images_per_class must be a positive integer, got 0"),
        ((2.0, 0), "got 2.0"),
        ((1, -1), "seed must be an integer in 0..* got -1"),
    ],
)
def test_pruning_set_that_cannot_be_drawn(toy, arguments, message):
    with pytest.raises(InvalidInput, match=message):
        pruning_set(toy, *arguments)


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ((50, 30, 21), 0.1, [5, 3, 2]),
        ((7, 8, 5), 0.25, [2, 2, 1]),  # 1.75, 2 and 1.25 images: the fifth goes to the first class
        ((2, 1, 1), 0.9, [1, 0, 0]),  # an image of each class stays
        ((1, 2), 0.0, [0, 0]),
    ],
)
def test_validation_split_is_stratified_and_complete(sizes, fraction, expected):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    train, held_out = validation_split(labels, fraction, seed=0)
    assert labels[held_out].bincount(minlength=len(sizes)).tolist() == expected
    assert torch.equal(torch.cat([train, held_out]).sort().values, torch.arange(len(labels)))
    assert torch.equal(held_out, validation_split(labels, fraction, seed=0)[1])
    assert len(held_out) < 5 or not torch.equal(held_out, validation_split(labels, fraction, seed=1)[1])


@pytest.mark.parametrize(("fraction", "message"), [(1.0, "got 1.0"), (-0.1, "got -0.1"), (0.01, "no image of 3 in 2")])
def test_bad_fractions(fraction, message):
    with pytest.raises(InvalidInput, match=message):
        validation_split(torch.tensor([0, 1, 1]), fraction, seed=0)
