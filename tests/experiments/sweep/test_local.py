import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from experiments.runs.outcomes import assert_same_outcome, numbers
from pathex.experiments.runs import run
from pathex.experiments.sweep import SweepConfig, create, plan, sweep
from pathex.experiments.sweep.executors import share
from pathex.experiments.sweep.local import LocalExecutor, _visible
from pathex.experiments.sweep.work import ENDED, Job

DIES = "model_factories:dies"


def assert_as_alone(planned, names, folder):
    """Runs of a sweep have the numbers and the mask of the same runs in this process, and not all the same ones."""
    for name in names:
        run(dataclasses.replace(planned.runs[name], out=str(folder / "alone")))
        assert_same_outcome(folder / "out" / name, folder / "alone" / name)
    first, second = (numbers(folder / "out" / name / "metrics.jsonl") for name in names[:2])
    assert first != second


def test_workers_give_the_numbers_of_a_run_alone(tiny, tmp_path):
    planned = plan(SweepConfig(settings=tiny, grid={"seed": [0, 1, 2]}, out=str(tmp_path / "out")))
    executor = LocalExecutor(share(2, None, 0, 8))
    assert executor.threads == torch.get_num_threads() == 1
    assert sweep(planned.runs, tmp_path / "out", lambda: executor).done == 3
    assert_as_alone(planned, list(planned.runs)[1:], tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_worker_that_dies_is_one_failed_run(small, tmp_path):
    options = {"flag": str(tmp_path / "flag"), "width": 2}
    config = SweepConfig(
        settings=small,
        grid={"seed": [0, 1]},
        list=({"model": DIES}, {"model": DIES, "model_options": options}, {"lr": 1e30}),
        concurrent=2,
        out=str(tmp_path / "out"),
    )
    planned = plan(config)
    first, second, dying, reviving, diverging = planned.runs
    again = []
    result = sweep(
        planned.runs,
        Path(config.out),
        lambda: create(config, planned.runs.values()),
        retries=1,
        on_event=lambda name, kind, payload: again.append((name, payload["error"])) if kind == "again" else None,
    )
    assert set(result.failed) == {dying, diverging} and result.done == 3
    assert {name for name, _ in again} == {dying, reviving} and all("SIGKILL" in error for _, error in again)
    assert "SIGKILL (out of memory?)" in result.failed[dying] and "loss became" in result.failed[diverging]
    record = json.loads((tmp_path / "out" / dying / "failed.json").read_text())
    assert record["attempts"] == 2 and "last words" in record["traceback"]

    assert_as_alone(planned, [first, second, reviving], tmp_path)


def test_workers_stop_when_their_sweep_is_closed_or_gone_and_can_go_on_later(tiny, tmp_path):
    planned = plan(SweepConfig(settings={**tiny, "epochs": 1000}, grid={"seed": [0, 1]}, out=str(tmp_path)))
    training = set()
    with LocalExecutor(share(2, 1, 0, 2)) as executor:
        for name, config in planned.runs.items():
            executor.submit(Job(name, config, 1))
        while len(training) < 2:
            for message in executor.listen(1.0):
                assert message.kind != ENDED
                training |= {message.name} if message.kind == "epoch" else set()
        closed, gone = executor._workers[0].child.process, executor._workers.pop(1).child
        gone.connection.close()  # what the system does when the sweep is killed
        gone.process.join(20)
        started = time.monotonic()
    assert time.monotonic() - started < 9 and closed.exitcode == gone.process.exitcode == 0  # neither was killed
    for name in planned.runs:
        assert "stopped by KeyboardInterrupt" in (tmp_path / name / "log.txt").read_text()
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        assert torch.load(tmp_path / name / "last.ckpt", weights_only=True)["epoch"] in {len(rows), len(rows) + 1}


@pytest.mark.parametrize(
    ("variable", "expected"),
    [(None, ["0", "1"]), ("", ["0", "1"]), ("3, 5", ["3", "5"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])],
)
def test_each_worker_sees_one_of_the_devices(variable, expected, monkeypatch):
    monkeypatch.delitem(os.environ, "CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", variable)
    assert [_visible(0), _visible(1)] == expected
