import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import yaml
from rich.console import Console

from experiments.sweep.conftest import InProcess
from pathex.cli import main
from pathex.cli.sweep import SweepDisplay
from pathex.experiments.runs import RunConfig
from pathex.experiments.sweep import Plan, Progress, executors
from pathex.experiments.sweep.work import ENDED, ended


@pytest.fixture
def executor(monkeypatch):
    """What executors were asked for; runs are carried out in this process."""
    asked = []

    def create(config, runs):
        asked.append((config, list(runs)))
        return InProcess()

    monkeypatch.setattr(executors, "create", create)
    return asked


@pytest.fixture
def file(tiny, tmp_path):
    """A sweep file of two runs, beside its base."""
    base = {name: value for name, value in tiny.items() if name != "method"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "sweeps").mkdir()
    path = tmp_path / "sweeps" / "s.yaml"
    path.write_text("base: ../base.yaml\nsettings: {batch_size: 16}\ngrid: {method: [magnitude, dense]}\n")
    return path


def test_a_sweep_file_gives_runs_a_table_and_a_report(command, executor, file):
    code, out, err = command("sweep", "--config", str(file), "--settings.epochs", "1", "--concurrent", "3")
    assert (code, out) == (0, "runs/results.csv\n")
    ((config, runs),) = executor
    assert config.concurrent == 3 and [(run.method, run.epochs, run.batch_size) for run in runs] == [
        ("magnitude", 1, 16),
        ("dense", 1, 16),
    ]
    assert err.startswith("2 runs\n1/2 magnitude-") and err.endswith("2 done, 0 failed\n")
    assert list(pd.read_csv("runs/results.csv")["status"]) == ["done", "done"]
    assert main(["report", "runs", "--out", "report"]) == 0 and Path("report/index.html").exists()


def test_a_run_of_a_sweep_is_the_run_of_pathex_run(command, executor, file):
    words = ["--lr", "1e-2", "--milestones", "[0.3]", "--model-options.width", "4", "--sparsity", "0"]
    assert main(["run", "--config", str(file.parents[1] / "base.yaml"), *words, "--out", "single"]) == 0
    given = [f"--settings.{word[2:]}" if word.startswith("--") else word for word in words]
    assert (
        command("sweep", "--config", str(file), "--grid", "{method: [px]}", "--settings.batch-size", "32", *given)[0]
        == 0
    )
    assert {path.name for path in Path("runs").iterdir() if path.is_dir()} == {p.name for p in Path("single").iterdir()}


def test_failed_runs_are_listed_and_the_exit_code_is_one(command, executor, file):
    code, out, err = command("sweep", "--config", str(file), "--list", "[{data: 'npz:nowhere.npz'}]")
    assert (code, out) == (1, "runs/results.csv\n")
    *_, summary, failure = err.splitlines()
    assert summary == "2 done, 1 failed" and failure.startswith("failed: px-") and "nowhere.npz" in failure
    code, _, err = command("sweep", "--config", str(file))
    assert code == 0 and err.splitlines() == ["2 runs", "2 done (2 of them before), 0 failed"]
    # Printed options are a sweep file.
    code, out, _ = command("sweep", "--config", str(file), "--settings.epochs", "0", "--print_config")
    assert code == 0 and yaml.safe_load(out)["settings"] == {"batch_size": 16, "epochs": 0}
    (file.parent / "printed.yaml").write_text(out)
    assert command("sweep", "--config", str(file.parent / "printed.yaml"))[0] == 0
    assert [run.epochs for run in executor[-1][1]] == [0, 0]


def test_the_options_are_known_before_torch_is(file):
    program = (
        "import sys; from pathex.cli import COMMANDS; from pathex.cli.parser import parse; "
        "config = parse(['sweep', *sys.argv[1:]], COMMANDS)[1]; "
        "sys.exit('torch' in sys.modules or not str(config.base).endswith('base.yaml'))"
    )
    words = [sys.executable, "-c", program, "--config", str(file)]
    assert subprocess.run(words, check=False, env=os.environ | {"PYTHONWARNINGS": "error"}).returncode == 0


def test_ctrl_c_says_that_the_same_command_goes_on(command, file, monkeypatch):
    def stop(job):
        raise KeyboardInterrupt

    made = InProcess(stop)
    monkeypatch.setattr(executors, "create", lambda config, runs: made)
    code, out, err = command("sweep", "--config", str(file))
    assert (code, out) == (130, "") and "the same command goes on from there" in err and made.closed


def test_the_live_table_shows_what_runs(monkeypatch):
    names = [f"run-{number}" for number in range(40)]
    display = SweepDisplay(Plan(dict.fromkeys(names, RunConfig()), 3))
    for name in names[:35]:
        display(name, "start", {})
    display(names[0], "prune_round", {"round": 2, "rounds": 100, "density": 0.5})
    display(names[1], "epoch", {"epoch": 3, "epochs": 4, "train_loss": 1.2345})
    display(names[3], "epoch", {"epoch": 1, "epochs": 4, "train_loss": 2.5, "level": 2, "levels": 9})
    display(names[2], ENDED, {**ended("done"), "before": False})
    screen = Console(file=StringIO(), width=100)
    screen.print(display._table())
    lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[1].split() == ["run-0", "prune", "2/100"] and lines[2].split() == ["run-1", "epoch", "3/4", "1.234"]
    assert lines[3].split() == ["run-3", "level", "2/9", "epoch", "1/4", "2.500"]
    assert lines[-2].split() == ["and", "2", "more"]
    assert lines[-1].startswith("1 done, 34 running, 0 failed, 5 waiting; about ")


def test_a_run_goes_through_its_stages():
    progress = Progress(["a", "b"], float)
    assert progress.counts == {"done": 0, "running": 0, "failed": 0, "waiting": 2}
    progress("a", "start", {})
    assert progress.counts["running"] == 1 and progress.running["a"].text == "loading"
    progress("a", "prune_round", {"round": 3, "rounds": 100, "density": 0.5})
    assert progress.running["a"].text == "prune 3/100"
    progress("a", "epoch", {"epoch": 1, "epochs": 4, "train_loss": 2.5})
    progress("a", "step", {"epoch": 2, "epochs": 4, "step": 1, "steps": 2})
    stage = progress.running["a"]
    assert (stage.text, stage.loss, stage.done) == ("epoch 2/4", 2.5, 0.375)
    progress("a", "something new", {})
    progress("a", ENDED, ended("done"))
    progress("b", "start", {})
    progress("b", ENDED, ended("failed", "why"))
    assert progress.counts == {"done": 1, "running": 0, "failed": 1, "waiting": 0} and not progress.running
    progress = Progress(["a"], float)
    for kind in ("busy", "again"):
        progress("a", "start", {})
        assert progress.counts == {"done": 0, "running": 1, "failed": 0, "waiting": 0}
        progress("a", kind, {"error": "lost"})
        assert progress.counts["waiting"] == 1


def test_trainings_of_one_run_follow_each_other():
    progress = Progress(["imp", "transfer"], float)

    def told(name, kind, **payload):
        progress(name, kind, payload)
        return progress.running[name].text, progress.running[name].done

    told("imp", "start")
    first = {"level": 1, "levels": 3}
    assert told("imp", "step", epoch=2, epochs=4, step=1, steps=2, **first) == ("level 1/3 epoch 2/4", 0.375 / 4)
    assert told("imp", "prune_round", round=1, rounds=3, density=0.5)[0] == "prune 1/3"
    assert told("imp", "epoch", epoch=4, epochs=4, level=3, levels=3) == ("level 3/3 epoch 4/4", 0.75)
    assert told("imp", "epoch", epoch=2, epochs=4) == ("epoch 2/4", 0.875)

    told("transfer", "start")
    one = {"task": 7, "target": 1, "targets": 2}
    assert told("transfer", "resumed", stage="training", epoch=4, epochs=4, **one) == ("target 1/2 epoch 4/4", 0.5)
    assert told("transfer", "epoch", epoch=1, epochs=4, **{**one, "target": 2}) == ("target 2/2 epoch 1/4", 0.625)
    assert progress.running["transfer"].begun == 0.5

    progress = Progress(["imp"], float)  # levels that were over before are no work
    told("imp", "start")
    for level in (1, 2):
        told("imp", "resumed", stage="level", level=level, levels=3)
        told("imp", "prune_round", round=level, rounds=3, density=0.5)
    done = told("imp", "resumed", stage="training", epoch=1, epochs=4, level=3, levels=3)
    assert done == ("level 3/3 epoch 1/4", 2.25 / 4) and progress.running["imp"].begun == 2.25 / 4


def test_the_time_left_follows_from_the_work_done():
    now = [100.0]
    progress = Progress("abcd", lambda: now[0])
    progress("a", ENDED, {**ended("done"), "before": True})  # before: not worked for
    assert progress.seconds_left() is None
    for name in "bc":
        progress(name, "start", {})
    progress("c", "resumed", {"stage": "training", "epoch": 5, "epochs": 10})
    now[0] += 30
    progress("b", "epoch", {"epoch": 5, "epochs": 10, "train_loss": 1.0})
    progress("c", "epoch", {"epoch": 6, "epochs": 10, "train_loss": 1.0})
    # 0.5 and 0.1 of a run in 30 seconds; left are 0.5, 0.4 and a whole one.
    assert progress.seconds_left() == pytest.approx(1.9 * 30 / 0.6)
    progress("b", ENDED, ended("done"))
    assert progress.seconds_left() == pytest.approx(1.4 * 30 / 1.1)
    progress("c", ENDED, ended("done"))
    progress("d", "start", {})
    progress("d", ENDED, ended("failed", "why"))
    assert progress.seconds_left() == 0
