import numpy as np
import pytest
import torch

from pathex.data import choose_classes, load, task_splits
from pathex.errors import InvalidInput

NAMES = ("ant", "bee", "cat", "dog", "7")


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
    ("given", "chosen"),
    [
        ([3, 0], [3, 0]),
        (["dog", 0, "2"], [3, 0, 2]),
        (["7"], [4]),  # a name comes before a number
        (None, [0, 1, 2, 3, 4]),
    ],
)
def test_numbers_and_names_in_the_given_order(given, chosen):
    assert choose_classes(NAMES, classes=given) == chosen


@pytest.mark.parametrize(
    ("name", "text"),
    [("c.yaml", "- dog\n- '1'\n"), ("c.yml", "[dog, 1]"), ("c.json", '["dog", "1"]'), ("c.txt", "dog\n1")],
)
def test_a_file_of_classes(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    assert choose_classes(NAMES, classes=str(file)) == choose_classes(NAMES, classes=file) == [3, 1]


def test_a_file_of_tasks(tmp_path):
    file = tmp_path / "tasks.json"
    file.write_text("[[3, 0], [1, 2]]")
    assert choose_classes(NAMES, classes=str(file), task=1) == [1, 2]
    for options, message in (
        ({"task": 2}, r"'task' must be an integer in 0..1, got 2"),
        ({"task": None}, "got None"),
        ({"task": 0, "tasks": 2}, "do not go with 'classes' that are split into tasks"),
    ):
        with pytest.raises(InvalidInput, match=message):
            choose_classes(NAMES, classes=str(file), **options)
    file.write_text("[1, 2")
    with pytest.raises(InvalidInput, match="cannot be read"):
        choose_classes(NAMES, classes=str(file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": []}, "at least one class"),
        ({"classes": ["cow"]}, "no class 'cow'. Known: 0..4 or ant, bee, cat, dog, 7"),
        ({"classes": [5]}, "no class 5"),
        ({"classes": [-1]}, "no class -1"),
        ({"classes": [True]}, "no class True"),
        ({"classes": [1, "bee"]}, "names class 'bee' twice"),
        ({"classes": 3}, "must be a list of class numbers or names, or a file of one, got int"),
        ({"classes": "nowhere.txt"}, "'nowhere.txt' cannot be read"),
        ({"task": 1}, "need option 'tasks'"),
        ({"task_seed": 1}, "need option 'tasks'"),
        ({"tasks": 2}, "option 'task' must be an integer in 0..1, got None"),
        ({"tasks": 2, "task": 2}, "in 0..1, got 2"),
        ({"tasks": 6, "task": 0}, "option 'tasks' must be an integer in 1..5, got 6"),
        ({"tasks": 2, "task": 0, "task_seed": -1}, "'task_seed' must be an integer in 0.."),
    ],
)
def test_bad_choices(options, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        choose_classes(NAMES, **options)
    assert "\n" not in str(caught.value)


@pytest.fixture
def marked(tmp_path):
    """Images of 6 classes whose pixels are class and number: 10 + 4 of each, in mixed order."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, each, shift in (("train", 10, 0), ("test", 4, 100)):
        labels = generator.permutation(np.repeat(np.arange(6), each))
        images = np.zeros((len(labels), 2, 2), np.uint8)
        images[:, 0, 0], images[:, 1, 1] = labels, shift + np.arange(len(labels))
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    np.savez(tmp_path / "marked.npz", **arrays)
    return f"npz:{tmp_path / 'marked.npz'}"


def test_the_images_follow_their_classes(marked):
    data = load(marked, classes=[4, 1])
    assert (data.num_classes, data.classes) == (2, ("4", "1"))
    for split, each in ((data.train, 10), (data.test, 4)):
        assert split.labels.bincount().tolist() == [each, each]
        assert torch.equal(split.data[:, 0, 0, 0], torch.tensor([4, 1], dtype=torch.uint8)[split.labels])
    # The statistics are those of the training images that are left.
    values = data.train.data.double() / 255
    assert data.mean.item() == pytest.approx(values.mean().item(), abs=1e-6)


def test_tasks_share_no_image_and_no_training_image_is_tested(marked):
    parts = [load(marked, tasks=3, task=task, task_seed=1) for task in range(3)]
    images = [{bytes(image.numpy()) for image in split.data} for part in parts for split in (part.train, part.test)]
    assert [len(each) for each in images] == [20, 8] * 3
    assert len(set.union(*images)) == 3 * 28
