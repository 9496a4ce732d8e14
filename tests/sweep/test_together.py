"""Runs that take turns in one process: each has the numbers that it has alone, whatever the others do."""

import dataclasses
import json
import random
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pathex.errors import InvalidInput, PathexWarning
from pathex.runs import run
from pathex.sweep import Plan, SweepConfig, plan, sweep
from pathex.sweep.executors import TOGETHER, create
from pathex.sweep.together import SharedData, TogetherExecutor
from pathex.sweep.turns import Turn, Turns
from pathex.sweep.work import ENDED, Job
from pathex.train.seeding import host_generators, same_generators

MODULE = '''
import random
import numpy as np
import torch
from torch import nn
from pathex.models import create

class Noisy(nn.Module):
    """Draws from every generator of the process in each step."""

    def __init__(self, network, host):
        super().__init__()
        self.network, self.dropout, self.host = network, nn.Dropout(0.2), host

    def forward(self, x):
        if self.training and self.host:
            x = x * (1 + random.random() / 10 + np.random.rand() / 10)
        return self.network(self.dropout(x))

def noisy(num_classes, in_channels, host=True):
    """A network of width 2, with dropout; with ``host`` it draws from Python and numpy too."""
    random.seed(3)
    np.random.seed(4)
    return Noisy(create("resnet20", num_classes=num_classes, in_channels=in_channels, width=2), host)
'''


@pytest.fixture
def various(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Runs that differ in method, seed, mask, learning rate and network; with ``bad`` two that fail."""
    (tmp_path / "noisy_network.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def made(out: str, *, bad: bool = False, host: bool = True, **settings: Any) -> Plan:
        noisy = {"model": "noisy_network:noisy", "model_options": {"host": host}}
        entries: list[dict[str, Any]] = [
            {"method": "px", "seed": 1, "lr": 0.05, **noisy},
            {"method": "snip", "sparsity": 0.5, "rounds": 2, **noisy},
            {"method": "dense", "epochs": 3, "batch_size": 24},
            {"method": "magnitude", "dynamic": "set", "dynamic_options": {"every": 2}},
        ]
        if bad:
            entries[1:1] = [{"lr": 1e30}, {"data": "npz:nowhere.npz"}]
        return plan(SweepConfig(settings={**tiny, **settings}, list=tuple(entries), out=str(tmp_path / out)))

    return made


def numbers(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in [result, *rows]]


def assert_as_alone(planned: Plan, folder: Path, names: list[str]) -> None:
    for name in names:
        config = dataclasses.replace(planned.runs[name], out=str(folder / "alone"))
        alone, swept = run(config).folder, Path(planned.runs[name].out) / name
        assert numbers(swept) == numbers(alone)
        states = [torch.load(each / "last.ckpt", weights_only=True) for each in (swept, alone)]
        for part in ("model", "optimizer"):
            assert flat(states[0][part]) == flat(states[1][part])
        masks = [each / "mask.safetensors" for each in (swept, alone)]
        assert masks[0].exists() == masks[1].exists() == (config.method != "dense")
        assert config.method == "dense" or masks[0].read_bytes() == masks[1].read_bytes()


def flat(state: Any) -> Any:
    """A state with tensors as bytes, to be compared."""
    if isinstance(state, dict):
        return {name: flat(value) for name, value in state.items()}
    if isinstance(state, list):
        return [flat(value) for value in state]
    return (
        state.contiguous().view(torch.uint8).numpy().tobytes()
        if isinstance(state, torch.Tensor) and state.dim()
        else state
    )


def test_runs_take_turns_and_have_the_numbers_of_each_alone(various: Callable[..., Plan], tmp_path: Path) -> None:
    planned = various("out", bad=True)
    before, filters = host_generators(), list(warnings.filters)
    order: list[tuple[str, str]] = []
    result = sweep(
        planned.runs,
        tmp_path / "out",
        lambda: TogetherExecutor(3, 1),
        on_event=lambda name, kind, payload: order.append((name, kind)),
    )
    assert all(same_generators(before, host_generators())) and list(warnings.filters) == filters
    good = [name for name in planned.runs if name not in result.failed]
    assert len(good) == 4 and sorted(error.split(" ")[0] for error in result.failed.values()) == ["data", "the"]
    # The last of the first three begins before the first ends.
    assert order.index((good[1], "start")) < order.index((good[0], ENDED))
    assert_as_alone(planned, tmp_path, good)
    assert numbers(tmp_path / "out" / good[0])[1:] != numbers(tmp_path / "out" / good[1])[1:]


def test_what_is_stopped_goes_on_later_to_the_same_numbers(various: Callable[..., Plan], tmp_path: Path) -> None:
    planned = various("out", epochs=6, host=False)  # each epoch begins with a seed of torch, and of nothing else
    epochs: list[str] = []

    def stop(name: str, kind: str, payload: dict[str, Any]) -> None:
        epochs.append(name) if kind == "epoch" else None
        if len(set(epochs)) == 3:
            raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        sweep(planned.runs, tmp_path / "out", lambda: TogetherExecutor(4, 1), on_event=stop)
    assert threading.active_count() == threads
    stopped = [path.parent for path in (tmp_path / "out").glob("*/last.ckpt")]
    assert len(stopped) >= 3 and not all((folder / "result.json").exists() for folder in stopped)
    logs = [(folder / "log.txt").read_text() for folder in stopped if not (folder / "result.json").exists()]
    assert logs and all("stopped by KeyboardInterrupt" in log for log in logs)
    assert sweep(planned.runs, tmp_path / "out", lambda: TogetherExecutor(4, 1)).done == 4
    assert_as_alone(planned, tmp_path, list(planned.runs))


def test_data_are_loaded_once_and_shared(tiny: dict[str, Any]) -> None:
    calls: list[str] = []

    def load(name: str, **options: Any) -> Any:
        from pathex.data import load as original

        calls.append(name)
        return original(name, **options)

    shared = SharedData(load=load)
    name = tiny["data"]
    assert shared(name) is shared(name) and shared(name, image_size=4) is not shared(name)
    assert calls == [name, name]
    there = SharedData(torch.device("cpu"), load)(name)
    assert there.train.data is there.train.data and torch.equal(there.train.data, shared(name).train.data)
    rows = torch.tensor([3, 1])
    assert torch.equal(there.train.images(rows), there.train.data[rows]) and len(there.train) == 64
    part = there.train.subset(rows, torch.tensor([0, 1]))
    assert torch.equal(part.data, there.train.data[rows])


def test_each_thread_keeps_its_warnings_and_generators() -> None:
    turns, heard = Turns(), {}

    def work(number: int) -> None:
        with Turn(turns) as turn, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.manual_seed(number)
            random.seed(number)
            drawn = []
            for _ in range(4):
                drawn.append((float(torch.rand(())), random.random()))
                warnings.warn(f"from {number}", PathexWarning, stacklevel=1)
                turn.on_step_end()
            heard[number] = drawn, [str(each.message) for each in caught]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    with Turn(turns):  # so that all of them wait
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        source, standard = torch.Generator().manual_seed(number), random.Random(number)
        expected = [(float(torch.rand((), generator=source)), standard.random()) for _ in range(4)]
        assert heard[number] == (expected, [f"from {number}"] * 4)


def test_turns_go_round() -> None:
    turns, order = Turns(), []

    def work(number: int) -> None:
        with Turn(turns) as turn:
            for _ in range(3):
                order.append(number)
                turn.on_step_end()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    with Turn(turns):
        for number, thread in enumerate(threads, 1):
            thread.start()
            while len(turns._waiting) < number:
                pass
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3] * 3


def test_options_of_the_executor(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = SweepConfig(settings=tiny, grid={"seed": [0]}, executor="together", out=str(tmp_path))
    planned = plan(config)
    executor = create(config, planned.runs.values())
    assert isinstance(executor, TogetherExecutor) and executor.threads == 1 and executor._concurrent == TOGETHER == 12
    chosen = create(dataclasses.replace(config, concurrent=3, threads=2), planned.runs.values())
    assert isinstance(chosen, TogetherExecutor) and (chosen._concurrent, chosen.threads) == (3, 2)
    with pytest.raises(InvalidInput, match=r"grid at \{seed: 0\}: logger 'wandb' writes one run a process"):
        plan(dataclasses.replace(config, settings={**tiny, "logger": "wandb"}))
    with pytest.raises(InvalidInput, match=r"unknown executor 'togehter'.*local, ray, together"):
        plan(dataclasses.replace(config, executor="togehter"))


def test_a_run_that_cannot_even_begin_is_a_failed_run(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((name, config),) = plan(SweepConfig(settings=tiny, grid={"seed": [0]}, out=str(tmp_path))).runs.items()

    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr("pathex.sweep.together.carry_out", lost)
    with TogetherExecutor(1, 1) as executor:
        executor.submit(Job(name, config, 1))
        (message,) = executor.listen(10.0)
    assert message.kind == ENDED and message.payload["error"] == "RuntimeError: the device is lost"


class Generator:
    """A generator of a GPU: a place that holds a state, which may be exchanged for another one."""

    device = torch.device("cpu")

    def __init__(self, device: object = None) -> None:
        self.state = {"seed": 0}

    def get_state(self) -> dict[str, int]:
        return dict(self.state)

    def set_state(self, state: dict[str, int]) -> None:
        self.state.update(state)

    def graphsafe_get_state(self) -> "Generator":
        twin = Generator()
        twin.state = self.state
        return twin

    def graphsafe_set_state(self, other: "Generator") -> None:
        self.state = other.state


def test_each_run_has_a_state_of_the_generator_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Generator()
    shared.state["seed"] = 7
    monkeypatch.setattr(torch.cuda, "default_generators", (shared,))
    monkeypatch.setattr(torch, "Generator", Generator)
    outside, turns = shared.state, Turns(0)
    seen: dict[int, list[dict[str, int]]] = {1: [], 2: []}

    def work(number: int) -> None:
        with Turn(turns) as turn:
            assert shared.state == {"seed": 7}
            shared.state["seed"] = number
            for _ in range(3):
                seen[number].append(shared.state)
                assert shared.state["seed"] == number
                turn.on_step_end()

    threads = [threading.Thread(target=work, args=(number,)) for number in seen]
    with Turn(turns):
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    states = [{id(state) for state in own} for own in seen.values()]
    assert [len(own) for own in states] == [1, 1] and states[0] != states[1]
    assert [len(own) for own in seen.values()] == [3, 3]
    assert shared.state is outside and outside == {"seed": 7}
