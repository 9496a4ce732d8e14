"""The pruning set and the validation images."""

import hashlib

import pytest
import torch

from pathex.data import load, pruning_set, validation_split
from pathex.errors import InvalidInput


def test_pruning_set_is_balanced_without_repeats_and_normalised(toy):
    chosen = pruning_set(toy, 3, seed=0)
    assert chosen.labels.bincount().tolist() == [3] * 5
    assert len(set(chosen.indices)) == 15
    assert torch.equal(chosen.labels, toy.train.labels[chosen.indices])
    assert torch.equal(chosen.images, toy.normalise(toy.train.data[chosen.indices]))
    assert chosen.labels.tolist() != sorted(chosen.labels.tolist())


def test_pruning_set_depends_on_the_seed_alone(toy):
    torch.manual_seed(1)
    first, state = pruning_set(toy, 2, seed=7), torch.get_rng_state()
    torch.manual_seed(2)
    second = pruning_set(toy, 2, seed=7)
    assert first.indices == second.indices
    assert first.hash == second.hash
    assert pruning_set(toy, 2, seed=8).hash != first.hash
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_pruning_set_hash_covers_indices_images_and_labels(toy):
    chosen = pruning_set(toy, 1, seed=0)
    indices = torch.tensor(chosen.indices)
    parts = (indices, toy.train.images(indices), toy.train.labels[indices])
    assert chosen.hash == hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def test_pruning_set_of_the_embedded_images_does_not_change():
    assert pruning_set(load("fashion-mini"), 1, seed=0).indices == [
        879,
        3246,
        453,
        4099,
        3930,
        3117,
        4225,
        3229,
        4534,
        189,
    ]


def test_pruning_set_from_a_subset_in_any_order(toy):
    subset = torch.tensor([42, 41, *range(20), 40])
    chosen = pruning_set(toy, 3, seed=0, indices_from=subset)
    assert set(chosen.indices) <= set(subset.tolist())
    assert chosen.indices == pruning_set(toy, 3, seed=0, indices_from=subset.flip(0)).indices


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


def test_validation_split_is_stratified_and_complete():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 21)
    train, held_out = validation_split(labels, 0.1, seed=0)
    assert labels[held_out].bincount().tolist() == [5, 3, 2]
    assert torch.equal(torch.cat([train, held_out]).sort().values, torch.arange(101))
    assert torch.equal(held_out, validation_split(labels, 0.1, seed=0)[1])
    assert not torch.equal(held_out, validation_split(labels, 0.1, seed=1)[1])


def test_validation_split_rounds_by_largest_remainder():
    labels = torch.tensor([0] * 7 + [1] * 8 + [2] * 5)
    _, held_out = validation_split(labels, 0.25, seed=0)
    # 1.75, 2 and 1.25 images: the fifth goes to the first class.
    assert labels[held_out].bincount().tolist() == [2, 2, 1]


def test_validation_split_leaves_an_image_of_each_class():
    train, _ = validation_split(torch.tensor([0, 0, 1, 2]), 0.9, seed=0)
    assert len(train) == 3


def test_no_validation():
    train, held_out = validation_split(torch.tensor([0, 1, 1]), 0.0, seed=0)
    assert train.tolist() == [0, 1, 2]
    assert held_out.shape == (0,)


@pytest.mark.parametrize(("fraction", "message"), [(1.0, "got 1.0"), (-0.1, "got -0.1"), (0.01, "no image of 3 in 2")])
def test_bad_fractions(fraction, message):
    with pytest.raises(InvalidInput, match=message):
        validation_split(torch.tensor([0, 1, 1]), fraction, seed=0)
