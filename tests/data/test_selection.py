import hashlib

import numpy as np
import pytest
import torch

from pathex.data import ArraySplit, ImageData, choose_classes, load, pruning_set, task_splits, validation_split
from refusals import refused

NAMES = ("ant", "bee", "cat", "dog", "7")


@pytest.fixture
def toy():
    """4 classes of 10 images each, and one class more of 3."""
    labels = torch.tensor([0, 1, 2, 3] * 10 + [4] * 3)
    split = ArraySplit(torch.arange(43, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 2, 4, 4), labels)
    return ImageData("toy", split, split, 5, NAMES, torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.2]), "none")


def test_pruning_set_is_balanced_without_repeats_and_depends_on_the_seed_alone(toy):
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
    white = torch.full((1, 2, 4, 4), 255.0)
    assert toy.normalise(white)[0, :, 0, 0].tolist() == pytest.approx([1.0, 3.75])
    assert white.eq(255).all()
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
        ((4, 0), "class '7' of 'toy' has only 3 training images"),
        ((1, 0, torch.arange(40)), "class '7' of 'toy' has only 0"),
        ((1, 0, torch.tensor([], dtype=torch.int64)), "class 'ant' of 'toy' has only 0"),
        ((1, 0, torch.tensor([5, 43])), r"must lie in 0..42, got 5..43"),
        ((0, 0), "images_per_class must be a positive integer, got 0"),
        ((2.0, 0), "got 2.0"),
        ((1, -1), "seed must be an integer in 0..* got -1"),
    ],
)
def test_pruning_set_that_cannot_be_drawn(toy, arguments, message):
    with refused(message):
        pruning_set(toy, *arguments)


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ((50, 30, 21), 0.1, [5, 3, 2]),
        ((7, 8, 5), 0.25, [2, 2, 1]),  # 1.75, 2 and 1.25 images: the fifth goes to the first class
        ((2, 1, 1), 0.9, [1, 0, 0]),  # an image of each class stays
        ((1, 2), 0.0, [0, 0]),
        ((1, 2), 1.0, "got 1.0"),
        ((1, 2), -0.1, "got -0.1"),
        ((1, 2), 0.01, "no image of 3 in 2"),
    ],
)
def test_validation_split_is_stratified_and_complete(sizes, fraction, expected):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    if isinstance(expected, str):
        with refused(expected):
            validation_split(labels, fraction, seed=0)
        return
    train, held_out = validation_split(labels, fraction, seed=0)
    assert labels[held_out].bincount(minlength=len(sizes)).tolist() == expected
    assert torch.equal(torch.cat([train, held_out]).sort().values, torch.arange(len(labels)))
    assert torch.equal(held_out, validation_split(labels, fraction, seed=0)[1])
    assert len(held_out) < 5 or not torch.equal(held_out, validation_split(labels, fraction, seed=1)[1])


@pytest.mark.parametrize(("count", "tasks"), [(10, 3), (1000, 100), (4, 4), (5, 1)])
def test_tasks_are_disjoint_and_of_equal_size(count, tasks):
    before = torch.get_rng_state()
    groups = task_splits(count, tasks, seed=3)
    used = [number for group in groups for number in group]
    assert [len(group) for group in groups] == [count // tasks] * tasks
    assert len(set(used)) == len(used) and set(used) <= set(range(count))
    assert all(group == sorted(group) for group in groups)
    assert groups == task_splits(count, tasks, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_tasks_follow_from_the_seed_and_may_be_of_chosen_classes():
    assert len({str(task_splits(20, 4, seed)) for seed in range(10)}) == 10
    first, second = (choose_classes(NAMES, classes=[4, 2, 1, 0], tasks=2, task=task, task_seed=5) for task in (0, 1))
    assert sorted(first + second) == [0, 1, 2, 4]
    assert choose_classes(NAMES, tasks=5, task=2, task_seed=0) == task_splits(5, 5, 0)[2]


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ([3, 0], {}, [3, 0]),
        (["dog", 0, "2"], {}, [3, 0, 2]),
        (["7"], {}, [4]),  # a name comes before a number
        (None, {}, [0, 1, 2, 3, 4]),
        (("c.yaml", "- dog\n- '1'\n"), {}, [3, 1]),  # a file and its content
        (("c.yml", "[dog, 1]"), {}, [3, 1]),
        (("c.json", '["dog", "1"]'), {}, [3, 1]),
        (("c.txt", "dog\n1"), {}, [3, 1]),
        (("t.json", "[[3, 0], [1, 2]]"), {"task": 1}, [1, 2]),
        (("t.json", "[[3, 0], [1, 2]]"), {"task": 2}, r"'task' must be an integer in 0..1, got 2"),
        (("t.json", "[[3, 0], [1, 2]]"), {}, "got None"),
        (("t.json", "[[3, 0], [1, 2]]"), {"task": 0, "tasks": 2}, "do not go with 'classes' that are split into tasks"),
        (("t.json", "[1, 2"), {}, "cannot be read"),
        ([], {}, "at least one class"),
        (["cow"], {}, "no class 'cow'. Known: 0..4 or ant, bee, cat, dog, 7"),
        ([5], {}, "no class 5"),
        ([-1], {}, "no class -1"),
        ([True], {}, "no class True"),
        ([1, "bee"], {}, "names class 'bee' twice"),
        (3, {}, "must be a list of class numbers or names, or a file of one, got int"),
        ("nowhere.txt", {}, "'nowhere.txt' cannot be read"),
        (None, {"task": 1}, "need option 'tasks'"),
        (None, {"task_seed": 1}, "need option 'tasks'"),
        (None, {"tasks": 2}, "option 'task' must be an integer in 0..1, got None"),
        (None, {"tasks": 6, "task": 0}, "option 'tasks' must be an integer in 1..5, got 6"),
        (None, {"tasks": 2, "task": 0, "task_seed": -1}, "'task_seed' must be an integer in 0.."),
    ],
)
def test_classes_by_number_name_and_file(tmp_path, given, options, expected):
    if isinstance(given, tuple):
        file, content = given
        given = tmp_path / file
        given.write_text(content)
    if isinstance(expected, str):
        with refused(expected):
            choose_classes(NAMES, classes=given, **options)
    else:
        assert choose_classes(NAMES, classes=given, **options) == expected
        assert not isinstance(given, type(tmp_path)) or choose_classes(NAMES, classes=str(given), **options) == expected


@pytest.fixture
def marked(tmp_path):
    """Images of 6 classes whose pixels are class and number: 10 + 4 of each, in mixed order."""
    generator, arrays = np.random.default_rng(0), {}
    for part, each, shift in (("train", 10, 0), ("test", 4, 100)):
        labels = generator.permutation(np.repeat(np.arange(6), each))
        images = np.zeros((len(labels), 2, 2), np.uint8)
        images[:, 0, 0], images[:, 1, 1] = labels, shift + np.arange(len(labels))
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    np.savez(tmp_path / "marked.npz", **arrays)
    return f"npz:{tmp_path / 'marked.npz'}"


def test_the_images_follow_their_classes_and_tasks_share_none(marked):
    data = load(marked, classes=[4, 1])
    assert (data.num_classes, data.classes) == (2, ("4", "1"))
    for split, each in ((data.train, 10), (data.test, 4)):
        assert split.labels.bincount().tolist() == [each, each]
        assert torch.equal(split.data[:, 0, 0, 0], torch.tensor([4, 1], dtype=torch.uint8)[split.labels])
    # The statistics are those of the training images that are left.
    values = data.train.data.double() / 255
    assert data.mean.item() == pytest.approx(values.mean().item(), abs=1e-6)
    parts = [load(marked, tasks=3, task=task, task_seed=1) for task in range(3)]
    images = [{bytes(image.numpy()) for image in split.data} for part in parts for split in (part.train, part.test)]
    assert [len(each) for each in images] == [20, 8] * 3
    assert len(set.union(*images)) == 3 * 28
