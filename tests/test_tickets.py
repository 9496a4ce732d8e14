"""The trainer of many tickets: batches and weights of the ordinary loop, and rows that survive a stop."""

import copy
import csv
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.overrides import TorchFunctionMode

import pathex
from pathex.data import ArraySplit
from pathex.data._images import assemble
from pathex.errors import InvalidInput, UnknownName
from pathex.train import Feed, TrainOptions, fabric, fit

pytestmark = pytest.mark.usefixtures("benchmark_scripts")


@pytest.fixture
def bench() -> SimpleNamespace:
    names = ("data", "network", "pruning", "training")
    return SimpleNamespace(tickets=import_module("tickets"), **{n: import_module(f"ticket_{n}") for n in names})


@pytest.fixture
def data() -> pathex.data.ImageData:
    generator = torch.Generator().manual_seed(4)
    parts = []
    for count in (37, 14):  # batches of 12 leave a single image over, batches of 16 leave five
        pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        parts.append(ArraySplit(pixels, torch.arange(count) % 4))
    return assemble("noise", *parts, tuple("abcd"))


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return pathex.models.CifarResNet(8, num_classes=4, width=3)


def random_mask(model: nn.Module) -> pathex.Mask:
    return pathex.prune(model, "random", sparsity=0.5, data=torch.randn(1, 3, 8, 8), progress=False).mask


@pytest.mark.parametrize("augment", ["none", "flip", "crop-flip"])
@pytest.mark.parametrize("batch_size", [12, 16, 64])
def test_batches_are_those_of_the_ordinary_feed(bench, data, augment, batch_size):
    feed = Feed(data, data.train, device=torch.device("cpu"), batch_size=batch_size, augment=augment)
    images = bench.data.DeviceImages.of(data, torch.device("cpu"))
    sizes = bench.data.batch_sizes(37, batch_size)
    plans = bench.data.epoch_plan(sizes, 5, 2, augment).split(sizes, dim=1)
    expected = list(feed.shuffled(5, 2))
    assert len(plans) == len(expected)
    for plan, (pixels, labels) in zip(plans, expected, strict=True):
        actual, classes = images.batch(plan)
        assert torch.equal(actual, pixels)
        assert torch.equal(classes, labels)


def plainly(data, options, mask, folder: Path, nesterov: bool) -> nn.Module:
    """The same training by the project's own loop, torch's SGD and the hooks of `attach`."""
    model = small()
    fit(
        model,
        Feed(data, data.train, device=torch.device("cpu"), batch_size=options.batch_size, augment="crop-flip"),
        TrainOptions(3, lr=0.05, weight_decay=0.01, nesterov=nesterov, seed=7),
        fabric=fabric("cpu"),
        loss=nn.CrossEntropyLoss(),
        metric=import_module("torchmetrics.classification").MulticlassAccuracy(4),
        folder=folder,
        prepare=lambda network, optimizer: pathex.attach(network, mask, optimizer),
    )
    return model


@pytest.mark.parametrize("nesterov", [False, True])
def test_weights_are_those_of_the_ordinary_loop(bench, data, tmp_path, nesterov):
    options = bench.training.Options(3, 16, 0.05, weight_decay=0.01, nesterov=nesterov)
    images = bench.data.DeviceImages.of(data, torch.device("cpu"))
    mask = random_mask(small())
    # A second ticket beside it must not matter.
    both = [bench.training.Trainer(small(n), mask, 7 + n, images, options) for n in range(2)]
    assert bench.training.train(both) == 3
    expected = plainly(data, options, mask, tmp_path, nesterov).state_dict()
    start, actual = small().state_dict(), both[0].model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert not torch.allclose(actual["conv.weight"], start["conv.weight"], rtol=0.01)
    for name, kept in mask.items():
        assert (actual[name][~kept] == 0).all()
        assert (actual[name][kept] != 0).all()


def test_a_state_goes_on_as_if_nothing_had_happened(bench, data):
    options = bench.training.Options(4, 16, 0.05)
    images = bench.data.DeviceImages.of(data, torch.device("cpu"))
    whole, first, second = (bench.training.Trainer(small(), None, 7, images, options) for _ in range(3))
    losses = []
    assert bench.training.train([whole], on_epoch=lambda *known: losses.append(known)) == 4
    assert bench.training.train([first], deadline=0.0) == 1
    second.load(copy.deepcopy(first.state()))
    assert bench.training.train([second], done=1) == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
    assert [number for number, _, _ in losses] == [1, 2, 3, 4]
    assert whole.mean_loss() == second.mean_loss() == losses[-1][2][0]


def test_the_rate_falls_at_the_milestones(bench):
    options = bench.training.Options()
    assert [options.rate(epoch) for epoch in (1, 80, 81, 120, 121, 160)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_accuracy_counts_the_test_images(bench, data):
    images = bench.data.DeviceImages.of(data, torch.device("cpu"))
    trainer = bench.training.Trainer(small(), None, 0, images, bench.training.Options())
    model = small().eval()
    right = [model(data.normalise(data.test.data[n : n + 1])).argmax(1) == data.test.labels[n] for n in range(14)]
    assert trainer.accuracy() == sum(map(int, right)) / 14
    assert trainer.model.training


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_captured_steps_are_the_uncaptured_ones(bench, data, precision):
    options = bench.training.Options(2, 16, 0.05, precision=precision)
    images = bench.data.DeviceImages.of(data, torch.device("cuda"))
    captured, plain = (
        [bench.training.Trainer(small(n), random_mask(small(n)), n, images, options) for n in range(3)]
        for _ in range(2)
    )
    before = [trainer.state() for trainer in captured]
    assert bench.training.capture_all(captured) is None
    for trainer, state in zip(captured, before, strict=True):
        torch.testing.assert_close(trainer.state(), state, rtol=0, atol=0)
    for trainers in (captured, plain):
        bench.training.train(trainers)
    for one, other in zip(captured, plain, strict=True):
        torch.testing.assert_close(one.state()["weights"], other.state()["weights"], rtol=2e-2, atol=2e-3)


# -- networks ----------------------------------------------------------------------------------------------------------


class Instead(TorchFunctionMode):
    """Every ReLU becomes a SiLU, whoever calls it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in {torch.relu, torch.nn.functional.relu, torch.Tensor.relu}:
            return torch.nn.functional.silu(args[0])
        return func(*args, **(kwargs or {}))


class Mixed(nn.Module):
    """A ReLU in each way of writing it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.act(self.first(x)) - 0.3)
        return self.last(torch.nn.functional.relu(input=x - 0.1, inplace=True)).relu()


@pytest.mark.parametrize("make", [small, Mixed])
def test_every_relu_is_replaced(bench, make):
    torch.manual_seed(1)
    model = make().eval()
    x = torch.randn(4, 3, 8, 8) if make is small else torch.randn(4, 3)
    swapped = bench.network.swap_relu(copy.deepcopy(model), "silu")
    with Instead():
        expected = model(x)
    assert not torch.allclose(expected, model(x))
    torch.testing.assert_close(swapped(x), expected, rtol=0, atol=0)
    assert list(swapped.state_dict()) == list(model.state_dict())


def test_a_swapped_network_is_pruned_and_bad_wishes_are_refused(bench):
    model = bench.network.Network("resnet20", options={"width": 2}, activation="leaky_relu").create(3)
    result = pathex.prune(model, "px", sparsity=0.5, data=torch.randn(4, 3, 8, 8), rounds=2, progress=False)
    assert abs(result.mask.sparsity - 0.5) < 1e-3
    with pytest.raises(InvalidInput, match="no ReLU"):
        bench.network.swap_relu(nn.Linear(2, 2), "gelu")
    with pytest.raises(UnknownName, match="swish"):
        bench.network.swap_relu(model, "swish")


# -- images ------------------------------------------------------------------------------------------------------------


def write_sheets(folders: list[Path], generator: np.random.Generator) -> dict[str, np.ndarray]:
    written = {}
    for part, count in (("train", 1030), ("test", 7)):
        images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        written[part] = images
        for number in range(-(-count // 1000)):
            tiles = np.zeros((1000, 32, 32, 3), np.uint8)
            chosen = images[1000 * number : 1000 * number + 1000]
            tiles[: len(chosen)] = chosen
            grid = tiles.reshape(25, 40, 32, 32, 3).swapaxes(1, 2).reshape(800, 1280, 3)
            Image.fromarray(grid).save(folders[number % len(folders)] / f"{part}-{number:03d}.png")
        np.save(folders[-1] / f"{part}-labels.npy", np.arange(count) % 10)
    return written


def test_sheets_in_two_folders_are_one_data_set(bench, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    written = write_sheets(folders, np.random.default_rng(2))
    data = bench.data.load(f"sheets:{folders[0]},{folders[1]}")
    for split, part in ((data.train, "train"), (data.test, "test")):
        assert torch.equal(split.data.permute(0, 2, 3, 1), torch.from_numpy(written[part]))
        assert torch.equal(split.labels, torch.arange(len(written[part])) % 10)
    assert data.num_classes == 10
    with pytest.raises(InvalidInput, match="got 1"):
        bench.data.load(f"sheets:{folders[1]}")


# -- the script --------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(data, tmp_path) -> str:
    arrays = {
        f"{part}_{kind}": value.numpy()
        for part, split in (("train", data.train), ("test", data.test))
        for kind, value in (("images", split.data.permute(0, 2, 3, 1)), ("labels", split.labels))
    }
    np.savez(tmp_path / "noise.npz", **arrays)
    return f"npz:{tmp_path / 'noise.npz'}"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_come_once_and_a_stopped_run_ends_like_an_unbroken_one(bench, archive, tmp_path, capsys):
    call = ["--data", archive, "--option", "width=2", "--methods", "px:rounds=2", "magnitude", "dense"]
    call += ["--sparsity", "0.5", "--seeds", "0", "--images-per-class", "2", "--epochs", "3", "--batch-size", "16"]
    call += ["--concurrent", "2", "--device", "cpu"]
    whole, broken = tmp_path / "whole.csv", tmp_path / "broken.csv"
    assert bench.tickets.main([*call, "--out", str(whole)]) == 0
    first = rows_of(whole)
    assert [row["method"] for row in first] == ["px:rounds=2", "magnitude", "dense"]
    assert [row["kept"] for row in first] == [str(round(int(row["total"]) * density)) for row, density in zip(
        first, (0.5, 0.5, 1), strict=True)]  # fmt: skip
    assert {row["data"] for row in first} == {"noise"}
    statuses = [bench.tickets.main([*call, "--out", str(broken), "--minutes", "0"]) for _ in range(6)]
    assert statuses == [3, 3, 3, 3, 0, 0]  # one epoch a call; the last epoch of a group is followed by the next group
    compared = ("method", "accuracy", "train_loss", "dead_layers", "kept")
    assert [[row[name] for name in compared] for row in rows_of(broken)] == [
        [row[name] for name in compared] for row in first
    ]
    assert "0 tickets to train, 3 are there already" in capsys.readouterr().out
    assert not list(tmp_path.glob("*paused*"))


def test_smoke_and_bad_arguments(bench, archive, capsys):
    assert (
        bench.tickets.main(
            ["--smoke", "--methods", "px:rounds=2", "--data", archive, "--option", "width=2", "--device", "cpu"]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "images a second" in out
    assert "differ by 0.0e+00" in out
    for wrong, message in (
        (["--methods", "pxx"], "unknown method 'pxx'"),
        (["--methods", "dense:rounds=2"], "no options"),
        (["--methods", "missing.safetensors"], "no such file"),
        (["--option", "width"], "NAME=VALUE"),
        (["--epochs", "0"], "at least 1"),
    ):
        assert bench.tickets.main(["--data", archive, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_masks_are_found_in_several_processes_as_in_one(bench, data, tmp_path):
    network = bench.network.Network("resnet20", 4, options={"width": 2})
    specs = [bench.pruning.Spec(label, 1, 0.5) for label in ("px:rounds=2", "random", "dense")]
    shared = {"device": torch.device("cpu"), "images_per_class": 2}
    alone = bench.pruning.find_masks(specs, network, data, **shared, folder=None, jobs=1)
    beside = bench.pruning.find_masks(specs, network, data, **shared, folder=tmp_path / "m", jobs=2)
    again = bench.pruning.find_masks(specs, network, data, **shared, folder=tmp_path / "m", jobs=2)
    assert alone == beside == again
    assert alone[specs[2]] is None
    assert again[specs[0]].metadata["prune_seconds"] == beside[specs[0]].metadata["prune_seconds"]
