import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import pathex
from brute_force.cases import Wired
from brute_force.ridge import ridge
from experiments.runs.outcomes import stop_at
from pathex.data import ImageData
from pathex.tasks import build
from pathex.tasks.linear_head import head_layer, ridge_sums, solve_ridge
from pathex.train import TrainOptions, fabric
from refusals import refused

NAMES = tuple("abcdef")


class Watched:
    """A split that writes down which images are read."""

    def __init__(self, part, pixels, labels, read, numbers=None):
        self.part, self.pixels, self.labels, self.read = part, pixels, labels, read
        self.numbers = torch.arange(len(labels)) if numbers is None else numbers

    def __len__(self):
        return len(self.labels)

    def images(self, indices):
        self.read.extend((self.part, number) for number in self.numbers[indices].tolist())
        return self.pixels[indices]

    def subset(self, rows, labels):
        return Watched(self.part, self.pixels[rows], labels, self.read, self.numbers[rows])


@pytest.fixture
def read():
    return []


@pytest.fixture
def data(read):
    """Six classes of 10 + 4 images of 8 pixels whose brightness and tint tell the class, in mixed order."""
    generator = torch.Generator().manual_seed(0)
    splits = {}
    for part, count in (("train", 60), ("test", 24)):
        labels = torch.arange(count)[torch.randperm(count, generator=generator)] % 6
        noise = torch.randint(50, (count, 3, 8, 8), generator=generator)
        tint = torch.tensor([[0, 0, 0], [90, 0, 0], [0, 90, 0], [0, 0, 90], [90, 90, 0], [90, 0, 90]])[labels]
        splits[part] = Watched(part, (noise + tint[:, :, None, None]).to(torch.uint8), labels, read)
    mean, std = torch.full((3,), 0.2), torch.full((3,), 0.2)
    return ImageData("six", splits["train"], splits["test"], 6, NAMES, mean, std, "crop-flip")


def transfer(data, tasks=3, validation=0.0, **options):
    options = {"validation": validation, "task_options": {"tasks": tasks, **options}}
    return build("transfer", "model_factories:tiny", "six", seed=0, load_data=lambda name: data, **options)


def mask_of(task, count=3, sparsity=0.5):
    images = task.pruning_set(count, 0)
    options = {"sparsity": sparsity, "rounds": 2, "ignore": task.unprunable}
    return pathex.prune(task.model, "px", data=[(images.images, images.labels)], **options).mask


def attached(mask):
    return lambda model, optimizer: pathex.attach(model, mask, optimizer)


def train(task, folder, prepare=None, on_event=None, **options):
    options = TrainOptions(**{"epochs": 1, "batch_size": 8, "lr": 1e-3, "augment": "auto", **options})
    return task.train(options, fabric=fabric("cpu"), folder=folder, prepare=prepare, on_event=on_event)


def measured(task, model, batch_size=8):
    return task.test(model, fabric=fabric("cpu"), batch_size=batch_size)


def rows_of(data, part, classes):
    """Numbers of the images of some classes, and their labels among these."""
    labels = getattr(data, part).labels.tolist()
    rows = [number for number, label in enumerate(labels) if label in classes]
    return rows, torch.tensor([classes.index(labels[row]) for row in rows])


def numbers_of(data, part, classes):
    return {(part, number) for number in rows_of(data, part, classes)[0]}


def examples(data, part, classes, network):
    """Inputs of the head for the images of some classes, and their labels."""
    rows, labels = rows_of(data, part, classes)
    copied = copy.deepcopy(network)
    copied.fc = nn.Identity()
    with torch.no_grad():
        return copied(data.normalise(getattr(data, part).pixels[rows])).numpy(), labels.numpy()


def check_head(head, features, labels, alpha=1.0):
    """Features are float32 and the network's memory layout may differ, so the last digits do."""
    weight, bias = ridge(features, np.eye(2)[labels], alpha)
    assert head["weight"].numpy() == pytest.approx(weight, rel=1e-3, abs=1e-5)
    assert head["bias"].numpy() == pytest.approx(bias, rel=1e-3, abs=1e-4)
    return weight, bias


def test_no_test_image_is_read_before_the_test(data, read, tmp_path):
    task = transfer(data, validation=0.2)
    source, *targets = task.options.tasks
    held_out = {
        ("train", rows_of(data, "train", classes)[0][row])
        for number, classes in enumerate(task.options.tasks)
        for row in task._part(number, task.model).validation_indices
    }
    assert len(held_out) == 12
    read.clear()
    mask = mask_of(task)
    assert set(read) == numbers_of(data, "train", source) - held_out
    assert len(task.source_task().data.test) == 0

    read.clear()
    heads, rows = train(task, tmp_path / "heads", attached(mask), epochs=0)
    assert rows == []
    assert set(read) == numbers_of(data, "train", sum(targets, ())) - held_out

    read.clear()
    model, rows = train(task, tmp_path / "run", attached(mask))
    assert all("val_accuracy" in row for row in rows)
    assert set(read) == numbers_of(data, "train", sum(targets, ()))

    read.clear()
    result = measured(task, model)
    assert set(read) == numbers_of(data, "test", sum(targets, ()))
    assert result["test_images"] == 16
    assert all(row["fine_tuned"] == row["zero_shot"] for row in measured(task, heads)["tasks"])


def test_the_source_is_a_task_of_its_own_with_a_head_for_masks_that_are_found_by_training(data, read, tmp_path):
    task = transfer(data)
    images = task.pruning_set(4, seed=1)
    assert len(set(images.indices)) == 8
    assert torch.equal(images.images, data.normalise(data.train.pixels[images.indices]))
    classes = list(task.options.tasks[0])
    assert torch.equal(torch.tensor(classes)[images.labels], data.train.labels[images.indices])
    check_head(task.model.fc.state_dict(), *examples(data, "train", classes, task.model))
    read.clear()
    source = task.source_task()
    _, rows = train(source, tmp_path)
    assert set(read) == numbers_of(data, "train", classes)
    assert source.model is task.model
    assert source.unprunable == ("fc",)
    assert rows[0]["train_loss"] < 0.5  # of the squared error; the cross-entropy of two classes is log 2


@pytest.mark.parametrize("head", ["fixed", "trained"])
def test_every_target_starts_from_the_same_pruned_weights_and_the_head_that_fits_them(data, tmp_path, head):
    task = transfer(data, head=head, targets=[1, 2, 0], alpha=0.5)
    mask, begun = mask_of(task), []
    before = {name: value.clone() for name, value in task.model.state_dict().items()}

    def prepare(model, optimizer):
        handle = pathex.attach(model, mask, optimizer)
        begun.append({name: value.detach().clone() for name, value in model.state_dict().items()})
        return handle

    model, rows = train(task, tmp_path, prepare, lr=0.05, start=1)
    assert [(row["task"], row["epoch"]) for row in rows] == [(1, 1), (2, 1), (0, 1)]
    network = pathex.make_permanent(copy.deepcopy(task.model), mask).eval()
    wanted = network.state_dict()
    assert len(begun) == 4
    for state in begun:
        assert all(torch.equal(value, wanted[name]) for name, value in state.items() if not name.startswith("fc."))
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    for place in (tmp_path / "tasks").iterdir():
        trained = torch.load(place / "last.ckpt", weights_only=True)["model"]
        assert all(not trained[name][~mask[name]].any() for name in mask)
        assert not torch.equal(trained["conv.weight"], wanted["conv.weight"])
        assert torch.equal(trained["fc.weight"], load_file(place / "head.safetensors")["weight"]) == (head == "fixed")
    assert "fc.weight" not in mask and len(list((tmp_path / "tasks").iterdir())) == 3
    result = measured(task, model, 5)
    for row, number in zip(result["tasks"], (1, 2, 0), strict=True):
        classes = list(task.options.tasks[number])
        stored = load_file(tmp_path / "tasks" / f"0{number}" / "head.safetensors")
        weight, bias = check_head(stored, *examples(data, "train", classes, network), 0.5)
        features, labels = examples(data, "test", classes, network)
        right = (features @ weight.T + bias).argmax(1) == labels
        assert row["zero_shot"] == pytest.approx(right.mean(), abs=1e-6)
        assert (row["task"], row["classes"]) == (number, [NAMES[label] for label in classes])
        assert row["fine_tuned"] in {round(count / 8, 7) for count in range(9)}
    for name, column in (("test_accuracy", "fine_tuned"), ("zero_shot_accuracy", "zero_shot")):
        assert result[name] == pytest.approx(np.mean([row[column] for row in result["tasks"]]), abs=1e-6)


def test_the_loss_is_the_squared_error_unless_asked_otherwise(data, tmp_path):
    task, losses = transfer(data, targets=[1]), {}
    for name in ("auto", "mse", "cross-entropy"):
        _, (row,) = train(task, tmp_path / name, loss=name, augment="none", lr=1e-9, freeze_batchnorm=True)
        losses[name] = row["train_loss"]
    rows, labels = rows_of(data, "train", list(task.options.tasks[1]))
    network = copy.deepcopy(task.model)
    network.fc.load_state_dict(load_file(tmp_path / "auto" / "tasks" / "01" / "head.safetensors"))
    with torch.no_grad():
        outputs = network(data.normalise(data.train.pixels[rows]))
    squared = float((outputs - torch.eye(2)[labels]).square().mean())
    assert losses["auto"] == losses["mse"] == pytest.approx(squared, rel=1e-3)
    assert losses["cross-entropy"] == pytest.approx(float(nn.functional.cross_entropy(outputs, labels)), rel=1e-3)


def test_a_target_that_is_done_is_not_trained_again(data, tmp_path):
    task, events = transfer(data), []
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path / "broken", on_event=stop_at("epoch", task=2), epochs=2)
    assert [path.parent.name for path in (tmp_path / "broken" / "tasks").glob("*/task.json")] == ["01"]
    model, rows = train(task, tmp_path / "broken", on_event=lambda *event: events.append(event), epochs=2)
    seen = [(kind, payload["task"], payload["epoch"]) for kind, payload in events if kind != "step"]
    assert seen == [("resumed", 1, 2), ("resumed", 2, 1), ("epoch", 2, 2)]
    assert {(payload["task"], payload["target"], payload["targets"]) for _, payload in events} == {(1, 1, 2), (2, 2, 2)}
    whole, unbroken = train(task, tmp_path / "unbroken", epochs=2)
    assert [(row["task"], row["epoch"]) for row in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in unbroken]
    assert measured(task, model) == measured(task, whole)


def test_tasks_by_name_by_number_and_from_a_file(data, tmp_path):
    listed = transfer(data, [["a", "d"], [4, "b", 5], ["c", "f"]], source=1, targets=[0])
    assert listed.options.tasks == ((0, 3), (4, 1, 5), (2, 5))
    assert (listed.options.source, listed.options.targets) == (1, (0,))
    for name, text in (("t.yaml", "- [a, d]\n- [4, b, 5]\n- [c, f]\n"), ("t.json", '[["a", 3], [4, 1, 5], [2, 5]]')):
        (tmp_path / name).write_text(text)
        assert transfer(data, str(tmp_path / name)).options.tasks == listed.options.tasks
    seeded = transfer(data, 2, task_seed=3).options.tasks
    assert sorted(sum(seeded, ())) == list(range(6))
    assert seeded != transfer(data, 2, task_seed=4).options.tasks
    # Three classes in the source, two in the target: every task has a head of its own size.
    model, _ = train(listed, tmp_path, attached(mask_of(listed)))
    assert listed.model.fc.out_features == 3
    assert load_file(tmp_path / "tasks" / "00" / "head.safetensors")["weight"].shape == (2, 32)
    assert measured(listed, model)["test_images"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": None}, "needs option 'tasks'"),
        (
            {"classes": 3},
            "unknown option of task 'transfer': 'classes'.* Known: alpha, head, source, targets, task_seed, tasks",
        ),
        ({"tasks": 0}, r"'tasks' must be an integer in 1\.\.6"),
        ({"tasks": 6}, "task 0 has 1 class"),
        ({"tasks": [["a", "b"], ["c", "z"]]}, "task 1: .*no class 'z'"),
        ({"tasks": ["a", "b"]}, "a list of classes for each task"),
        ({"tasks": [["a", "b"], ["c", "d"]], "task_seed": 1}, "'task_seed'"),
        ({"tasks": "nowhere.yaml"}, "'nowhere.yaml' cannot be read"),
        ({"tasks": 1}, "'targets' of task 'transfer' is None"),
        ({"source": 3}, "'source' of task 'transfer' is 3; allowed: the number of a task, 0 to 2"),
        ({"targets": []}, "'targets'"),
        ({"targets": [1, 1]}, "different numbers"),
        ({"targets": [3]}, "0 to 2"),
        ({"alpha": 0}, "'alpha' of task 'transfer' is 0; allowed: a number above 0"),
        ({"head": "free"}, "head 'free'.*fixed, trained"),
    ],
)
def test_options_that_cannot_be_used_are_refused(data, options, message):
    with refused(message):
        transfer(data, **options)


def test_what_shows_with_data_and_training_is_refused(data, tmp_path):
    with refused(r"head_lr is 0\.1, and the head is fixed"):
        train(transfer(data), tmp_path, head_lr=0.1)
    assert len(train(transfer(data, head="trained"), tmp_path, head_lr=0.1)[1]) == 2
    data.test.labels[data.test.labels == 4] = 5
    with refused(r"class 'e' of task \d has no test images"):
        transfer(data)


@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("resnet20", 8, "fc"),
        ("vgg11_bn", 32, "fc"),
        ("torchvision:mobilenet_v3_small", 32, "classifier.3"),
        ("timm:tf_efficientnet_lite0", 32, "classifier"),
        ("timm:vit_tiny_patch16_224", 224, "head"),
        ("torchvision:squeezenet1_1", 32, None),  # a convolution
    ],
)
def test_the_head_is_the_layer_that_gives_the_outputs(name, size, layer):
    assert head_layer(pathex.models.create(name, 3).eval(), torch.zeros(1, 3, size, size)) == layer


def test_networks_without_such_a_layer_are_refused(data, monkeypatch):
    heads = {"first": nn.Linear(192, 2), "second": nn.Linear(192, 2)}
    two = Wired(lambda net, x: (net.first(x.flatten(1)) + net.second(x.flatten(1))) / 2, **heads)
    for network, message in (
        (two, r"model 'model_factories:tiny': .* needs outputs \(B, 2\)"),
        (nn.Linear(7, 2), "fails on an image of 'six'"),
    ):
        monkeypatch.setattr("pathex.models.create", lambda *_, network=network, **__: network)
        with refused(message):
            transfer(data)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_two_tasks_of_five_classes_of_imagenet(data_folder, tmp_path):
    weights = str(data_folder / "checkpoints" / "tf_efficientnet_lite0-imagenet.safetensors")
    options = {"data_options": {"root": str(data_folder), "image_size": 96, "mean": 0.5, "std": 0.5}}
    options |= {"task_options": {"tasks": 2, "targets": [0, 1]}, "weights": weights}
    task = build("transfer", "timm:tf_efficientnet_lite0", "imagenet", seed=0, **options)
    mask = mask_of(task, 2, 0.36)
    model, _ = train(task, tmp_path, attached(mask), batch_size=64, lr=5e-5, augment="none", freeze_batchnorm=True)
    result = measured(task, model, 50)
    assert result["test_images"] == 200
    # Guessing gives 0.2. What the source's task knows of its classes is not lost by a third of the weights.
    assert result["zero_shot_accuracy"] > 0.6
    assert result["test_accuracy"] > 0.6


def sums_of(features, targets, batch=7):
    return sum(ridge_sums(*pair) for pair in zip(features.split(batch), targets.split(batch), strict=True))


def solve(features, targets, alpha=1.0, **options):
    return solve_ridge(sums_of(features, targets), features.shape[1], alpha, **options)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize(("images", "size"), [(40, 6), (12, 30), (1, 3)])
def test_the_solution_is_that_of_all_images_at_once(images, size, alpha, intercept):
    draws = torch.Generator().manual_seed(images + size)
    # Features behind a ReLU and a pool are positive, far from mean zero.
    features = torch.randn(images, size, generator=draws, dtype=torch.float64).abs() + 3
    targets = torch.randn(images, 4, generator=draws, dtype=torch.float64)
    weights, bias = solve(features, targets, alpha, intercept=intercept)
    wanted, wanted_bias = ridge(features.numpy(), targets.numpy(), alpha, intercept)
    assert weights.dtype == bias.dtype == torch.float64
    assert weights.numpy() == pytest.approx(wanted, rel=1e-7, abs=1e-9)
    assert bias.numpy() == pytest.approx(wanted_bias, rel=1e-7, abs=1e-9)


def test_batches_play_no_part_and_features_may_be_zero_or_huge_but_not_infinite():
    draws = torch.Generator().manual_seed(1)
    features, targets = torch.rand(50, 9, generator=draws), torch.rand(50, 2, generator=draws)
    order = torch.randperm(50, generator=draws)
    whole = sums_of(features, targets, 50)
    shuffled = sums_of(features[order], targets[order], 3)
    parts = sums_of(features[:8], targets[:8]) + sums_of(features[8:], targets[8:])
    for other in (shuffled, parts):
        for one, two in zip(solve_ridge(whole, 9, 1.0), solve_ridge(other, 9, 1.0), strict=True):
            assert torch.allclose(one, two, rtol=1e-10, atol=1e-12)
    weights, bias = solve(torch.zeros(4, 3), torch.eye(2)[torch.tensor([0, 0, 0, 1])])
    assert not weights.any()
    assert bias.tolist() == [0.75, 0.25]  # the shares of the classes
    features = 1e12 * (1 + 1e-3 * torch.rand(20, 6, generator=torch.Generator().manual_seed(3)).double())
    assert all(torch.isfinite(part).all() for part in solve(features, torch.eye(2)[torch.arange(20) % 2]))
    with refused("not finite"):
        solve(torch.full((3, 2), torch.inf), torch.ones(3, 2))
    with refused("no images"):
        solve_ridge(torch.zeros(5, 5), 2, 1.0)
