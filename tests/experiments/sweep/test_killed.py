import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml

from experiments.runs.outcomes import assert_same_outcome
from pathex.experiments.runs import run
from pathex.experiments.sweep import SweepConfig, plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups on this system"),
]

SMALL = {
    "model_options": {"width": 2},
    "batch_size": 500,
    "lr": 0.05,
    "rounds": 2,
    "images_per_class": 2,
    "device": "cpu",
}


def start(file, out, log):
    words = ["sweep", "--config", str(file), "--out", str(out), "--concurrent", "2"]
    with log.open("wb") as told:
        command = [sys.executable, "-m", "pathex", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, start_new_session=True)


def finished(out):
    return len(list(out.glob("*/result.json")))


def kill_in_the_middle(file, out, log, runs):
    """Kill all processes of a sweep as soon as so many runs are done and another has trained an epoch."""
    child = start(file, out, log)
    while finished(out) < runs or not unfinished_epochs(out):
        assert child.poll() is None, log.read_text()
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL


def unfinished_epochs(out):
    trained = [path for path in out.glob("*/metrics.jsonl") if not (path.parent / "result.json").exists()]
    return sum(len(path.read_text().splitlines()) for path in trained)


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
    planned = plan(
        SweepConfig(**{**content, "grid": tuple(content["grid"]), "list": tuple(content["list"])}, out=str(out))
    )
    assert len(planned.runs) == 24
    kill_in_the_middle(file, out, tmp_path / "first.txt", 4)
    broken = [path.parent.name for path in out.glob("*/last.ckpt") if not (path.parent / "result.json").exists()]
    kill_in_the_middle(file, out, tmp_path / "second.txt", 12)
    child = start(file, out, tmp_path / "third.txt")
    printed, _ = child.communicate()
    log = (tmp_path / "third.txt").read_text()
    assert child.returncode == 1 and printed.decode().splitlines()[-1] == str(out / "results.csv"), log
    *_, bad = planned.runs
    assert log.splitlines()[-1].startswith(f"failed: {bad}: the training loss became") and "23 done (" in log

    table = pd.read_csv(out / "results.csv")
    assert list(table["name"]) == list(planned.runs)
    assert table.loc[table["status"] != "done", "name"].tolist() == [bad]
    assert (table["status"] == "done").sum() == 23 and table["test_accuracy"].notna().sum() == 23
    for name in broken:  # as if nothing had happened, bit for bit
        config = planned.runs[name]
        alone = run(type(config)(**{**vars(config), "out": str(tmp_path / "alone")})).folder
        assert_same_outcome(out / name, alone)
    assert broken


def test_two_sweeps_share_a_folder(tmp_path):
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({"settings": {**SMALL, "epochs": 1}, "grid": {"seed": list(range(6))}}))
    children = [start(file, out, tmp_path / f"{number}.txt") for number in range(2)]
    for number, child in enumerate(children):
        child.communicate()
        assert child.returncode == 0, (tmp_path / f"{number}.txt").read_text()
    table = pd.read_csv(out / "results.csv")
    assert (table["status"] == "done").all() and len(table) == 6
    assert not list(out.glob("*/failed.json")) and not list(out.glob("**/*.tmp"))
    for log in out.glob("*/log.txt"):  # each run was carried out once
        assert log.read_text().count("start of") == 1
