"""A run that is killed without warning, at any moment, must end with the same weights and numbers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pathex.runs import RunConfig, run

CHILD = """
import json, sys
from pathlib import Path
import torch
from pathex.runs import RunConfig, run
from pathex.train import loop

loop._SECONDS_BETWEEN_STEP_EVENTS = 0.0  # an epoch of this test is shorter than the pause between two events
torch.set_num_threads(int(sys.argv[5]))  # sums are the same bit for bit with as many threads

settings, kind, number, flag = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])

def on_event(event, payload):
    if event == kind and payload.get("round", payload.get("epoch")) == number:
        flag.touch()
        sys.stdin.read()

run(RunConfig(**settings), on_event=on_event)
"""


def start_and_kill(settings, kind, number, flag):
    """Run in another process, and kill it as soon as it reports the event ``kind`` of that number."""
    command = [
        sys.executable,
        "-c",
        CHILD,
        json.dumps(settings),
        kind,
        str(number),
        str(flag),
        str(torch.get_num_threads()),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        while not flag.exists():
            if child.poll() is not None:
                raise AssertionError(child.stderr.read().decode())
            try:
                child.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


def outcome(folder):
    state = torch.load(folder / "last.ckpt", weights_only=True)
    result = json.loads((folder / "result.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [{name: value for name, value in row.items() if "seconds" not in name} for row in [result, *rows]]
    return state["model"], state["optimizer"]["state"], numbers


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_run_ends_as_an_unbroken_one(settings, tmp_path):
    unbroken = run(RunConfig(**settings)).folder
    broken = {**settings, "out": str(tmp_path / "broken")}
    start_and_kill(broken, "prune_round", 1, tmp_path / "in-pruning")
    (folder,) = Path(broken["out"]).iterdir()
    assert not (folder / "mask.safetensors").exists()
    start_and_kill(broken, "step", 2, tmp_path / "in-epoch")
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    assert run(RunConfig(**broken)).folder.name == unbroken.name
    assert "starts again" in (folder / "log.txt").read_text()

    weights, momenta, numbers = outcome(unbroken)
    again, momenta_again, numbers_again = outcome(folder)
    assert numbers_again == numbers
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert all(
        torch.equal(momenta_again[key]["momentum_buffer"], value["momentum_buffer"]) for key, value in momenta.items()
    )
