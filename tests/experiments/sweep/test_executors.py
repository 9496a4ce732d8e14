import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from experiments.runs.outcomes import WITH_TESTS, assert_same_outcome, numbers
from pathex.experiments.runs import run
from pathex.experiments.sweep import SweepConfig, create, plan, sweep
from pathex.experiments.sweep.local import LocalExecutor, _visible
from pathex.experiments.sweep.work import ENDED, Job, share
from refusals import refused

DIES = "model_factories:dies"


def swept_by(config, heard, **options):
    """The result of a sweep by the executor that its settings name, and its runs."""
    runs = plan(config).runs
    return sweep(runs, Path(config.out), lambda: create(config, runs.values()), on_event=heard, **options), runs


def assert_as_alone(runs, names, folder):
    """Runs of a sweep have the numbers and the mask of the same runs in this process, and not all the same ones."""
    for name in names:
        run(dataclasses.replace(runs[name], out=str(folder / "alone")))
        assert_same_outcome(folder / "out" / name, folder / "alone" / name)
    first, second = (numbers(folder / "out" / name / "metrics.jsonl") for name in names[:2])
    assert first != second


def test_workers_give_the_numbers_of_a_run_alone(tiny, tmp_path):
    planned = plan(SweepConfig(settings=tiny, grid={"seed": [0, 1, 2]}, out=str(tmp_path / "out")))
    executor = LocalExecutor(share(2, None, 0, 8))
    assert executor.threads == torch.get_num_threads() == 1
    assert sweep(planned.runs, tmp_path / "out", lambda: executor).done == 3
    assert_as_alone(planned.runs, list(planned.runs)[1:], tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_worker_that_dies_is_one_failed_run(small, tmp_path):
    options = {"flag": str(tmp_path / "flag"), "width": 2}
    listed = ({"model": DIES}, {"model": DIES, "model_options": options}, {"lr": 1e30})
    config = SweepConfig(settings=small, grid={"seed": [0, 1]}, list=listed, concurrent=2, out=str(tmp_path / "out"))
    events = []
    result, runs = swept_by(config, lambda *event: events.append(event), retries=1)
    again = [(name, payload["error"]) for name, kind, payload in events if kind == "again"]
    first, second, dying, reviving, diverging = runs
    assert set(result.failed) == {dying, diverging} and result.done == 3
    assert {name for name, _ in again} == {dying, reviving} and all("SIGKILL" in error for _, error in again)
    assert "SIGKILL (out of memory?)" in result.failed[dying] and "loss became" in result.failed[diverging]
    record = json.loads((tmp_path / "out" / dying / "failed.json").read_text())
    assert record["attempts"] == 2 and "last words" in record["traceback"]

    assert_as_alone(runs, [first, second, reviving], tmp_path)


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
        gone.wait(20)
        started = time.monotonic()
    assert time.monotonic() - started < 9 and closed.returncode == gone.process.returncode == 0  # neither was killed
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


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray")


def swept(small, **options):
    grid, listed = {"method": ["random", "magnitude"], "seed": [0, 1]}, ({"lr": 1e30}, {"data": "npz:nowhere.npz"})
    config, kinds = SweepConfig(settings=small, grid=grid, list=listed, **options), []
    return swept_by(config, lambda name, kind, payload: kinds.append(kind))[0], kinds


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_and_local_are_equal(ray, small, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)  # the folders are relative, and Ray's processes start elsewhere
    ours, _ = swept(small, out="local", concurrent=2)
    capfd.readouterr()
    theirs, kinds = swept(small, out="ray", concurrent=2, executor="ray")
    said = capfd.readouterr()
    assert (said.out + said.err).strip() == ""
    assert (ours.done, len(ours.failed)) == (theirs.done, len(theirs.failed)) == (4, 2)
    assert theirs.failed == ours.failed
    finished = [path.parent for path in (tmp_path / "ray").glob("*/result.json")]
    assert len(finished) == 4
    for folder in finished:
        assert_same_outcome(folder, tmp_path / "local" / folder.name)
    assert {"start", "prune_round", "epoch", "ended"} <= set(kinds)
    again, _ = swept(small, out="ray", concurrent=2, executor="ray")
    assert (again.before, len(again.failed)) == (4, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_lost_task_is_started_again(ray, small, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", WITH_TESTS["PYTHONPATH"])
    listed = ({"model": DIES}, {"model": DIES, "model_options.flag": str(tmp_path / "flag")})
    config = SweepConfig(settings=small, list=listed, executor="ray", concurrent=2, out=str(tmp_path / "out"))
    again = []
    result, runs = swept_by(config, lambda name, kind, _: again.append(name) if kind == "again" else None, retries=1)
    dying, reviving = runs
    assert sorted(again) == sorted([dying, reviving])
    assert result.done == 1 and list(result.failed) == [dying] and "lost" in result.failed[dying]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_does_not_answer_is_bad_input(ray, small, tmp_path):
    config = SweepConfig(settings=small, grid={"seed": [0]}, executor="ray", address="auto", out=str(tmp_path))
    with refused("address 'auto'"):
        create(config, plan(config).runs.values())


killed = pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups on this system")
SMALL = {"model_options": {"width": 2}, "batch_size": 100, "rounds": 2, "images_per_class": 2, "device": "cpu"}
SMALL |= {"data_options": {"classes": [0, 1]}}
LONGEST = 300  # seconds of one command: an endless one fails a test


def start(file, out, log):
    words = ["sweep", "--config", str(file), "--out", str(out), "--concurrent", "2"]
    with log.open("wb") as told:
        command = [sys.executable, "-m", "pathex", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, start_new_session=True)


def finish(child, log):
    """What a sweep prints; all its processes are killed, and the test fails, where it does not end."""
    try:
        return child.communicate(timeout=LONGEST)[0].decode()
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        pytest.fail(f"no end after {LONGEST} s: {log.read_text()}")


def kill_in_the_middle(file, out, log, runs):
    """Kill all processes of a sweep as soon as so many runs are done and another has trained an epoch; its names."""
    child, done, begun, limit = start(file, out, log), set(), set(), time.monotonic() + LONGEST
    try:
        while len(done) < runs or not begun:
            assert child.poll() is None and time.monotonic() < limit, log.read_text()
            time.sleep(0.02)
            done = {path.parent.name for path in out.glob("*/result.json")}
            begun = {path.parent.name for path in out.glob("*/metrics.jsonl") if path.stat().st_size} - done
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    return begun


@pytest.mark.slow
@killed
def test_24_runs_killed_twice_end_complete(tmp_path):
    methods, sparsities = ["random", "magnitude", "snip", "px"], [0.5, 0.9]
    content = {
        "settings": {**SMALL, "epochs": 2},
        "grid": [
            {"method": methods, "sparsity": sparsities, "seed": [0, 1]},
            {"method": ["dense"], "sparsity": sparsities, "seed": list(range(7))},
        ],
        "list": [{"lr": 1e30}],
    }
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    planned = plan(SweepConfig(**content | {name: tuple(content[name]) for name in ("grid", "list")}, out=str(out)))
    assert len(planned.runs) == 24
    broken = kill_in_the_middle(file, out, tmp_path / "first.txt", 4)
    kill_in_the_middle(file, out, tmp_path / "second.txt", 12)
    child = start(file, out, tmp_path / "third.txt")
    printed = finish(child, tmp_path / "third.txt")
    log = (tmp_path / "third.txt").read_text()
    assert child.returncode == 1 and printed.splitlines()[-1] == str(out / "results.csv"), log
    *_, bad = planned.runs
    assert log.splitlines()[-1].startswith(f"failed: {bad}: the training loss became") and "23 done (" in log

    table = pd.read_csv(out / "results.csv")
    assert list(table["name"]) == list(planned.runs)
    assert table.loc[table["status"] != "done", "name"].tolist() == [bad]
    assert (table["status"] == "done").sum() == 23 and table["test_accuracy"].notna().sum() == 23
    for name in broken:  # as if nothing had happened, bit for bit
        alone = run(dataclasses.replace(planned.runs[name], out=str(tmp_path / "alone"))).folder
        assert_same_outcome(out / name, alone)


@pytest.mark.slow
@killed
def test_two_sweeps_share_a_folder(tmp_path):
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({"settings": {**SMALL, "epochs": 1}, "grid": {"seed": list(range(6))}}))
    children = [start(file, out, tmp_path / f"{number}.txt") for number in range(2)]
    for number, child in enumerate(children):
        finish(child, tmp_path / f"{number}.txt")
        assert child.returncode == 0, (tmp_path / f"{number}.txt").read_text()
    table = pd.read_csv(out / "results.csv")
    assert (table["status"] == "done").all() and len(table) == 6
    assert not list(out.glob("*/failed.json")) and not list(out.glob("**/*.tmp"))
    for log in out.glob("*/log.txt"):  # each run was carried out once
        assert log.read_text().count("start of") == 1
