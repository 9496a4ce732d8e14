"""Captured steps against eager ones. Without a GPU a capture is played by a function that is called again."""

import copy
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

import pathex
from pathex.capturing import cuda_graph
from pathex.errors import InvalidInput
from pathex.train import Feed, TrainOptions, fabric, fit
from pathex.train.measuring import Collected, LossWatch
from pathex.train.seeding import host_generators, same_generators
from pathex.train.stepping import CapturedStep, EagerStep, obstacle

CPU = torch.device("cpu")


class Played:
    """Calls what it captures once, as a capture does, and again at every replay."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, work: Callable[[], None], device: torch.device) -> Callable[[], object]:
        self.captures += 1
        work()

        def replay() -> None:
            self.replays += 1
            work()

        return replay


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    """Every training of the test captures its steps."""
    made = Played()
    monkeypatch.setattr("pathex.train.loop.obstacle", lambda *_: None)
    monkeypatch.setattr("pathex.train.loop.CapturedStep", partial(CapturedStep, capture=made))
    return made


def trained(network: nn.Module, images: Any, folder: Path, **options: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
    def hold(model: nn.Module, optimizer: Any) -> None:
        kept = torch.rand(model[5].weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
        pathex.attach(model, pathex.Mask({"5.weight": kept}), optimizer)

    folder.mkdir(exist_ok=True)
    network = copy.deepcopy(network)
    groups = [{"params": list(network[:5].parameters())}, {"params": list(network[5].parameters()), "lr": 0.01}]
    made = TrainOptions(**{"epochs": 3, "lr": 0.05, "milestones": (0.5,), "augment": "crop-flip", **options})
    return fit(
        network,
        Feed(images, images.train, device=CPU, batch_size=8, augment=made.augment),
        made,
        fabric=fabric("cpu"),
        loss=nn.CrossEntropyLoss(),
        metric=MulticlassAccuracy(4, average="micro"),
        folder=folder,
        groups=groups,
        prepare=hold,
    )


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"nesterov": True}, {"freeze_batchnorm": True}])
def test_a_captured_training_is_the_eager_one_bit_for_bit(
    network: nn.Module, images: Any, tmp_path: Path, played: Played, options: dict[str, Any]
) -> None:
    eager, rows = trained(network, images, tmp_path / "eager", capture="never", **options)
    assert played.captures == 0
    captured, others = trained(network, images, tmp_path / "captured", **options)
    # 34 images in batches of 8: the last one of 2 is carried out as it is written.
    assert (played.captures, played.replays) == (1, 12)
    for row, other in zip(rows, others, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    for name, value in eager.state_dict().items():
        assert torch.equal(value, captured.state_dict()[name]), name
    saved = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("eager", "captured")]
    for one, other in zip(*(list(each["optimizer"]["state"].values()) for each in saved), strict=True):
        assert one.keys() == other.keys()
        assert all(one[name] is other[name] is None or torch.equal(one[name], other[name]) for name in one)
    assert saved[0]["optimizer"]["param_groups"] == saved[1]["optimizer"]["param_groups"]


def test_a_captured_training_resumes(network: nn.Module, images: Any, tmp_path: Path, played: Played) -> None:
    whole, _ = trained(network, images, tmp_path / "whole", capture="never")
    with pytest.raises(KeyboardInterrupt):
        stop = Played()

        def interrupted(work: Callable[[], None], device: torch.device) -> Callable[[], object]:
            replay = stop(work, device)

            def counted() -> None:
                if stop.replays == 9:
                    raise KeyboardInterrupt
                replay()

            return counted

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pathex.train.loop.CapturedStep", partial(CapturedStep, capture=interrupted))
            trained(network, images, tmp_path / "broken")
    again, rows = trained(network, images, tmp_path / "broken")
    assert len(rows) == 3 and played.replays == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def steps(network: nn.Module, capture: Any, told: list[str]) -> tuple[CapturedStep, torch.optim.SGD]:
    machine = fabric("cpu")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    eager = EagerStep(
        network,
        optimizer,
        nn.CrossEntropyLoss(),
        lambda *_: None,
        fabric=machine,
        layout=torch.channels_last,
    )
    return CapturedStep(eager, optimizer, tell=told.append, capture=capture), optimizer


def batch(size: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=source), torch.randint(4, (size,), generator=source)


def test_warming_up_leaves_no_trace(network: nn.Module) -> None:
    """Weights, statistics, momentum and generators are as before, also in the middle of a training."""
    told: list[str] = []
    step, optimizer = steps(network, lambda work, device: work() or (lambda: None), told)
    plain = EagerStep(
        network, optimizer, nn.CrossEntropyLoss(), print, fabric=fabric("cpu"), layout=torch.channels_last
    )
    plain.update(*batch(), lambda *_: None)
    before = copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict()), host_generators()
    step(*batch(seed=1))  # its replay does nothing
    assert told == [] and step.captured and step.images == 8 and float(step.total) == 0
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before[0].items())
    for number, entries in before[1]["state"].items():
        assert torch.equal(entries["momentum_buffer"], optimizer.state_dict()["state"][number]["momentum_buffer"])
    assert before[1]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert all(same_generators(before[2], host_generators()))
    assert all(parameter.grad is None for parameter in network.parameters())


class HostNoise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * random.random()


class NewBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count = self.count + 1
        return x


@pytest.mark.parametrize(
    ("module", "message"),
    [(HostNoise(), "random numbers outside torch"), (NewBuffer(), "buffer '0.count' is another tensor")],
)
def test_what_a_replay_would_leave_out_is_not_captured(network: nn.Module, module: nn.Module, message: str) -> None:
    told: list[str] = []
    model, twin = nn.Sequential(module, network), copy.deepcopy(nn.Sequential(module, network))
    capture = Played()
    step, _ = steps(model, capture, told)
    other, _ = steps(twin, capture, [])
    random.seed(1)
    torch.manual_seed(1)
    step(*batch())
    step(*batch(seed=1))
    assert capture.captures == 0 and len(told) == 1 and message in told[0] and not step.captured
    random.seed(1)
    torch.manual_seed(1)
    for seed in range(2):
        other._eager(*batch(seed=seed))
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_capture_that_fails_is_told_once_and_steps_go_on(network: nn.Module) -> None:
    def fails(work: Callable[[], None], device: torch.device) -> Callable[[], object]:
        work()
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    told: list[str] = []
    twin = copy.deepcopy(network)
    step, _ = steps(network, fails, told)
    torch.manual_seed(0)
    for seed in range(3):
        step(*batch(seed=seed))
    assert told == ["RuntimeError: operation not permitted when stream is capturing"] and step.images == 24
    eager, _ = steps(twin, fails, told)
    torch.manual_seed(0)
    for seed in range(3):
        eager._eager(*batch(seed=seed))
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in network.state_dict().items())


def test_always_and_never(network: nn.Module, images: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="capture is 'always', but the device is no CUDA device; allowed: auto"):
        trained(network, images, tmp_path / "always", capture="always")
    with pytest.raises(InvalidInput, match="unknown capture 'sometimes'"):
        pathex.runs.check_config(pathex.runs.RunConfig(capture="sometimes", device="cpu"))


def test_what_stands_in_the_way() -> None:
    def machine(kind: str, ranks: int = 1, scaler: object = None) -> Any:
        precision = SimpleNamespace(scaler=scaler)
        strategy = SimpleNamespace(precision=precision)
        return SimpleNamespace(device=torch.device(kind), world_size=ranks, strategy=strategy)

    assert obstacle(machine("cuda"), 1, None) is None
    reasons = [
        obstacle(machine("cpu"), 1, None),
        obstacle(machine("cuda", 2), 1, None),
        obstacle(machine("cuda"), 2, None),
        obstacle(machine("cuda", scaler=object()), 1, None),
        obstacle(machine("cuda"), 1, object()),
    ]
    assert len({*reasons}) == 5 and None not in reasons


def test_collected_outputs_arrive_in_order_and_all() -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    collected = Collected(lambda *pair: seen.append(pair))
    pairs = [(torch.full((2, 2**15), float(number)), torch.full((2,), number)) for number in range(10)]
    for pair in pairs:
        collected(*pair)
    collected.flush()
    collected.flush()
    assert len(seen) == 3  # four batches fill what is collected
    for place in range(2):
        assert torch.equal(torch.cat([pair[place] for pair in seen]), torch.cat([pair[place] for pair in pairs]))
    collected(*pairs[0])
    collected.clear()
    collected.flush()
    assert len(seen) == 3


def test_the_watch_reads_the_number_as_it_is() -> None:
    total = torch.zeros((), dtype=torch.float64)
    watch = LossWatch(total)
    assert watch.read() == 0
    total.fill_(2.5)
    assert watch.read() == 2.5


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_graph_trains_as_eager_steps_do(
    network: nn.Module, images: Any, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = fabric("cuda", precision)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    results = []
    for capture in ("never", "always"):
        torch.manual_seed(0)
        folder = tmp_path / capture
        folder.mkdir()
        feed = Feed(images, images.train, device=machine.device, batch_size=8)
        options = TrainOptions(epochs=3, lr=0.01, capture=capture)
        metric = MulticlassAccuracy(4, average="micro")
        common = {"loss": nn.CrossEntropyLoss(), "metric": metric, "folder": folder, "fabric": machine}
        model, rows = fit(copy.deepcopy(network), feed, options, **common)
        results.append((model.state_dict(), [row["train_loss"] for row in rows]))
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-3)
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
def test_what_was_captured_happens_again() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    number = torch.zeros((), device=device)
    replay = cuda_graph(lambda: number.add_(1) and None, device)
    assert float(number) == 0
    replay()
    replay()
    assert float(number) == 2
