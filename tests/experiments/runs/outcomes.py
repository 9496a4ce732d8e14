"""What runs left in their folders, and runs that are killed."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

import pathex
from pathex.experiments.runs import RunConfig, build_task, run
from pathex.experiments.runs.folder import Journal
from pathex.experiments.runs.rewind import rewound_mask
from pathex.experiments.runs.tickets import Stage
from pathex.train import fabric, loop

TESTS = str(Path(__file__).parents[2])
WITH_TESTS = os.environ | {"PYTHONPATH": os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])}
"""The environment of a process that imports networks of the tests."""


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def mask_of(folder, name="mask"):
    return pathex.Mask.load(folder / f"{name}.safetensors")


def state_of(path):
    return torch.load(path, weights_only=True)["model"]


def equal(state, other):
    return set(state) == set(other) and all(torch.equal(state[name], other[name]) for name in state)


def times(state, mask):
    return {name: tensor * mask[name] if name in mask else tensor for name, tensor in state.items()}


def numbers(path):
    """What a file of a run holds but the seconds, and the digests of files with seconds."""

    def timeless(row):
        return {name: value for name, value in row.items() if "seconds" not in name and name not in {"sha256", "files"}}

    if path.suffix == ".jsonl":
        return [timeless(row) for row in entries(path)]
    return [json.loads(path.read_text(), object_hook=timeless)]


def assert_same_outcome(folder, other):
    """Two folders of the same run hold the same files, numbers, masks, weights and momenta."""
    assert folder.name == other.name
    files = {path.relative_to(folder) for path in folder.rglob("*")}
    assert files == {path.relative_to(other) for path in other.rglob("*")}
    for name in files:
        one, two = folder / name, other / name
        if name.suffix in {".json", ".jsonl"}:
            assert numbers(one) == numbers(two), name
        if name.suffix == ".safetensors":
            assert one.read_bytes() == two.read_bytes(), name
        if name.suffix == ".ckpt" and name.stem != "init":
            states = [torch.load(path, weights_only=True) for path in (one, two)]
            for state in states:
                state.pop("rows", None)  # they hold seconds, and are those of metrics.jsonl
            leaves = [torch.utils._pytree.tree_leaves(state) for state in states]
            assert len(leaves[0]) == len(leaves[1]) > 0
            for left, right in zip(*leaves, strict=True):
                assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, name


def _run_until(settings, moment, connection, threads):
    loop._SECONDS_BETWEEN_STEP_EVENTS = 0.0  # an epoch of this test is shorter than the pause between two events
    torch.set_num_threads(threads)  # sums are the same bit for bit with as many threads

    def on_event(event, payload):
        if moment.items() <= {"event": event, **payload}.items():
            connection.send(None)
            connection.recv()

    run(RunConfig(**settings), on_event=on_event)


def start_and_kill(settings, moment):
    """Run in another process, and kill it as soon as it reports an event that has all of ``moment``."""
    if not hasattr(signal, "SIGKILL"):
        pytest.skip("no SIGKILL on this system")
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    child = context.Process(target=_run_until, args=(settings, moment, theirs, torch.get_num_threads()))
    child.start()
    theirs.close()
    ours.recv()  # an EOFError if it ends before
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def rewound(settings, folder):
    """Find a mask by training as one of two processes, and write it under the number of this one."""
    config, machine = RunConfig(**settings), fabric("cpu", "32-true", devices=2)
    mask, _ = rewound_mask(Stage(config, folder, build_task(config), None, machine, Journal(None, None), 0))
    mask.save(folder / f"{machine.global_rank}.safetensors")


def stop_at(kind, **known):
    """Interrupts a run at the first event of this kind that has all of ``known``."""

    def on_event(event, payload):
        if event == kind and {name: payload.get(name) for name in known} == known:
            raise KeyboardInterrupt

    return on_event
