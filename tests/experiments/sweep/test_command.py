import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from experiments.sweep.conftest import InProcess
from pathex.cli import main
from pathex.cli.console import SweepDisplay
from pathex.experiments.runs import RunConfig
from pathex.experiments.sweep import Plan, work
from pathex.experiments.sweep.work import ENDED, ended


@pytest.fixture
def executor(monkeypatch):
    """What executors were asked for; runs are carried out in this process."""
    asked = []

    def create(config, runs):
        asked.append((config, list(runs)))
        return InProcess()

    monkeypatch.setattr(work, "create", create)
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
    monkeypatch.setattr(work, "create", lambda config, runs: made)
    code, out, err = command("sweep", "--config", str(file))
    assert (code, out) == (130, "") and "the same command goes on from there" in err and made.closed


def test_on_a_terminal_there_is_a_bar_for_each_run_that_goes_on(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    names = [f"run-{number}" for number in range(5)]
    with SweepDisplay(Plan(dict.fromkeys(names, RunConfig()), 3)) as display:

        def bars():
            return {task.description: (task.completed, task.total) for task in display.tasks}

        display(names[4], ENDED, {**ended("done"), "before": True})
        assert bars() == {"runs": (0, 4)}
        for name in names[:3]:
            display(name, "prune_round", {"round": 2, "rounds": 100, "density": 0.5})
        display(names[1], "epoch", {"epoch": 3, "epochs": 4, "train_loss": 1.2345})
        display(names[2], "epoch", {"epoch": 1, "epochs": 4, "train_loss": 2.5, "level": 2, "levels": 9})
        display(names[2], "prune_done", {"kept": 1, "total": 2, "seconds": 3.0})
        shown = {"run-0 prune": (2, 100), "run-1 train": (3, 4), "run-2 level 2 of 9": (1, 4)}
        assert bars() == {"runs": (0, 4), **shown}
        display(names[0], ENDED, {**ended("done"), "before": False})
        display(names[1], "again", {"error": "lost"})
        assert bars() == {"runs": (1, 4), "run-2 level 2 of 9": (1, 4)}
    said = capsys.readouterr().err
    assert "2/5 run-0: done" in said and "run-1: lost; it goes on from its last epoch" in said and "kept" not in said
