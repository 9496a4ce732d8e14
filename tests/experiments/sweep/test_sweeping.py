import contextlib
import errno
import json
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
import yaml

from experiments.sweep.conftest import InProcess
from pathex.cli import main
from pathex.cli.console import SweepDisplay
from pathex.experiments.runs import RunConfig, locked
from pathex.experiments.sweep import Plan, SweepConfig, plan, sweep, sweeper, work
from pathex.experiments.sweep.work import ENDED, Job, carry_out, ended
from pathex.masks import replacing
from refusals import refused


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(sweeper, "_SECONDS_IF_BUSY", 0.0)


@pytest.fixture
def planned(tiny, tmp_path):
    """Three runs, of which the last one fails by itself."""
    failing = ({"data": "npz:nowhere.npz"},)
    return plan(SweepConfig(settings=tiny, grid={"seed": [0, 1]}, list=failing, out=str(tmp_path / "out"))).runs


def carried_out(runs, executor, **options):
    (out,) = {run.out for run in runs.values()}
    return sweep(runs, Path(out), lambda: executor, **options)


def test_a_failed_run_is_told_and_does_not_end_the_sweep(planned, tmp_path):
    heard, executor = [], InProcess()
    listen = executor.listen
    # What comes after the end of a run is old.
    executor.listen = lambda seconds: [*(messages := listen(seconds)), *messages[-1:]]
    result = carried_out(planned, executor, on_event=lambda *message: heard.append(message))
    *good, bad = planned
    assert (result.done, result.before, list(result.failed)) == (2, 0, [bad])
    assert executor.closed and executor.seen == list(planned)
    record = json.loads((tmp_path / "out" / bad / "failed.json").read_text())
    assert "nowhere.npz" in record["error"] == result.failed[bad]
    assert record["attempts"] == 1 and "Traceback" in record["traceback"]
    assert [name for name, kind, _ in heard if kind == ENDED] == list(planned)
    assert Counter(kind for name, kind, _ in heard if name == good[0])["epoch"] == 2

    table = pd.read_csv(result.table)
    assert list(table["name"]) == list(planned)
    assert list(table["status"]) == ["done", "done", "failed"]
    assert list(table["seed"]) == [0, 1, 0] and "epochs" not in table and "data" in table
    for name, row in zip(good, table.itertuples(), strict=False):
        known = json.loads((tmp_path / "out" / name / "result.json").read_text())
        assert row.test_accuracy == known["test_accuracy"] and row.kept == known["kept"]
    assert "nowhere.npz" in table["error"][2] and table["error"][:2].isna().all()
    assert result.parquet == (find_spec("pyarrow") is not None)
    if result.parquet:
        pd.testing.assert_frame_equal(table.convert_dtypes(), pd.read_parquet(result.table.with_suffix(".parquet")))


def test_the_next_sweep_carries_out_what_is_left(planned, tmp_path):
    *good, bad = planned
    first = carried_out(planned, InProcess(lambda job: ended("failed", "no luck") if job.config.seed == 1 else None))
    assert len(first.failed) == 2 and set(first.failed.values()) > {"no luck"}
    second = InProcess()
    result = carried_out(planned, second)
    assert second.seen == list(planned)[1:]
    assert (result.done, result.before, list(result.failed)) == (2, 1, [bad])
    assert [path.parent.name for path in (tmp_path / "out").glob("*/failed.json")] == [bad]
    # Nothing is started where all is done.
    result = sweep({name: planned[name] for name in good}, tmp_path / "out", lambda: pytest.fail("started"))
    assert (result.done, result.before, result.failed) == (2, 2, {})
    assert list(pd.read_csv(result.table)["status"]) == ["done", "done"]
    # Other settings under the same name fail with the reason.
    config = tmp_path / "out" / good[0] / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 3"))
    assert "other settings" in carried_out(planned, InProcess()).failed[good[0]]


@pytest.mark.parametrize("losses", [2, 3])
def test_a_lost_process_is_replaced_a_few_times(planned, losses, tmp_path):
    left, again = [ended("lost", "killed")] * losses, []
    executor = InProcess(lambda job: left.pop() if job.config.seed == 1 and left else None)
    heard = lambda name, kind, payload: again.append(name) if kind == "again" else None  # noqa: E731
    good, name = dict(list(planned.items())[:2]), list(planned)[1]
    result = carried_out(good, executor, retries=2, on_event=heard)
    assert again == [name] * 2
    assert result.failed == ({} if losses == 2 else {name: "killed"})
    if losses == 3:
        assert json.loads((tmp_path / "out" / name / "failed.json").read_text())["attempts"] == 3


def test_a_run_that_another_process_has_is_waited_for(planned, tmp_path, monkeypatch):
    first, config = next(iter(planned.items()))
    folder = tmp_path / "out" / first
    folder.mkdir(parents=True)
    order, held = [], contextlib.ExitStack()
    held.enter_context(locked(folder))

    def world(job):
        order.append(job.name)
        if len(order) == 4:  # all others are through
            held.close()

    result = carried_out(planned, InProcess(world))
    assert result.done == 2 and order.count(first) >= 2 and order[1:3] == list(planned)[1:]
    # Taken while it loads, it is busy too.
    (folder / "result.json").unlink()
    monkeypatch.setattr("pathex.experiments.sweep.work._check_free", lambda folder: None)
    with locked(folder):
        assert carry_out(Job(first, config, 1), lambda kind, payload: None)["status"] == "busy"


def test_the_columns_are_what_differs(tmp_path):
    listed = (
        {"method": "dense"},
        {"method": "px", "rounds": 3, "method_options.redraw": True, "allocation": "erk"},
        {"method": "px", "rounds": 3, "allocation": {"conv.weight": 0.5}},
    )
    made = plan(SweepConfig(settings={"epochs": 1, "images_per_class": 2}, list=listed, out=str(tmp_path))).runs
    table = pd.read_csv(carried_out(made, InProcess(lambda job: ended("failed", "not tried"))).table)
    assert " ".join(table) == "name status method sparsity allocation method_options.redraw seed error"
    assert table["sparsity"].tolist() == [0, 0.9, 0.9]  # a dense run has no pruning settings
    assert table["allocation"].tolist()[1:] == ["erk", '{"conv.weight": 0.5}'] and pd.isna(table["allocation"][0])


def test_warnings_of_pathex_are_messages(tiny, tmp_path):
    heard, settings = [], {**tiny, "sparsity": 0.98, "epochs": 0}  # a layer collapses
    ((name, config),) = plan(SweepConfig(settings=settings, grid={"seed": [0]}, out=str(tmp_path))).runs.items()
    outcome = carry_out(Job(name, config, 1), lambda kind, payload: heard.append(payload.get("message", kind)))
    assert outcome["status"] == "done" and any("lost" in message or "collaps" in message for message in heard)


def test_what_shows_before_anything_runs(planned, tmp_path, monkeypatch):
    executor, out = InProcess(), tmp_path / "out"
    (tmp_path / "file").touch()
    with refused("cannot be made"):
        sweep(planned, tmp_path / "file" / "out", lambda: executor)
    with monkeypatch.context() as patch, refused("2 processes; allowed: a sweep in one"):
        patch.setenv("WORLD_SIZE", "2")
        patch.setenv("LOCAL_RANK", "1")
        carried_out(planned, executor)
    assert not out.exists()
    (out / "results.csv" / "in the way").mkdir(parents=True)
    with refused(r"results\.csv cannot be written"):
        carried_out(planned, executor)
    assert not executor.seen


def test_a_full_disk_fails_the_runs_and_not_the_sweep_that_tells_of_it(planned, tmp_path, monkeypatch):
    full = {"results.csv": False}

    @contextlib.contextmanager
    def no_room(path):
        if full.get(path.name, True):
            raise OSError(errno.ENOSPC, "No space left on device")
        with replacing(path) as temporary:
            yield temporary

    monkeypatch.setattr("pathex.files.writing.replacing", no_room)
    monkeypatch.setattr("pathex.experiments.sweep.sweeper.replacing", no_room)
    monkeypatch.setattr("pathex.experiments.sweep.sweeper.find_spec", lambda name: None)
    result = carried_out(planned, InProcess())
    assert list(result.failed) == list(planned)
    assert all("No space left" in result.failed[name] for name in list(planned)[:2])
    assert not result.parquet and result.table.exists() and not result.table.with_suffix(".parquet").exists()

    executor, ends = InProcess(), list[str]()

    def fill(name, kind, payload):
        full["results.csv"] = True
        ends.extend([name] if kind == ENDED else [])

    with refused(r"results\.csv cannot be written \(No space left on device\)"):
        carried_out(planned, executor, on_event=fill)
    assert ends == list(planned) and executor.closed


def test_folders_that_are_deleted_meanwhile_are_made_again(planned, tmp_path):
    def world(job):
        shutil.rmtree(tmp_path / "out")
        return None if job.config.seed == 1 else ended("failed", "why")

    result = carried_out(planned, InProcess(world))
    assert result.done == 1 and result.table.exists()
    assert (tmp_path / "out" / list(planned)[-1] / "failed.json").exists()


@pytest.fixture
def executor(monkeypatch):
    """What executors were asked for; runs are carried out in this process."""
    asked = []
    monkeypatch.setattr(work, "create", lambda config, runs: asked.append((config, list(runs))) or InProcess())
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


def test_a_sweep_file_gives_runs_as_pathex_run_does_a_table_and_a_report(command, executor, file):
    code, out, err = command(
        "sweep", "--trust-code", "--config", str(file), "--settings.epochs", "1", "--concurrent", "3"
    )
    assert (code, out) == (0, "runs/results.csv\n")
    ((config, runs),) = executor
    assert config.concurrent == 3
    assert [(run.method, run.epochs, run.batch_size) for run in runs] == [("magnitude", 1, 16), ("dense", 1, 16)]
    assert err.startswith("2 runs\n1/2 magnitude-") and err.endswith("2 done, 0 failed\n")
    assert list(pd.read_csv("runs/results.csv")["status"]) == ["done", "done"]
    assert main(["report", "runs", "--out", "report"]) == 0 and Path("report/index.html").exists()
    words = ["--lr", "1e-2", "--milestones", "[0.3]", "--model-options.width", "4", "--sparsity", "0"]
    assert main(["run", "--trust-code", "--config", str(file.parents[1] / "base.yaml"), *words, "--out", "single"]) == 0
    given = [f"--settings.{word[2:]}" if word.startswith("--") else word for word in words]
    given += ["--grid", "{method: [px]}", "--settings.batch-size", "32", "--out", "swept"]
    assert command("sweep", "--trust-code", "--config", str(file), *given)[0] == 0
    swept, single = ({path.name for path in Path(out).iterdir() if path.is_dir()} for out in ("swept", "single"))
    assert swept == single


def test_failed_runs_are_listed_and_the_exit_code_is_one(command, executor, file):
    code, out, err = command("sweep", "--trust-code", "--config", str(file), "--list", "[{data: 'npz:nowhere.npz'}]")
    assert (code, out) == (1, "runs/results.csv\n")
    *_, summary, failure = err.splitlines()
    assert summary == "2 done, 1 failed" and failure.startswith("failed: px-") and "nowhere.npz" in failure
    code, _, err = command("sweep", "--trust-code", "--config", str(file))
    assert code == 0 and err.splitlines() == ["2 runs", "2 done (2 of them before), 0 failed"]
    # Printed options are a sweep file.
    code, out, _ = command("sweep", "--trust-code", "--config", str(file), "--settings.epochs", "0", "--print_config")
    assert code == 0 and yaml.safe_load(out)["settings"] == {"batch_size": 16, "epochs": 0}
    (file.parent / "printed.yaml").write_text(out)
    assert command("sweep", "--trust-code", "--config", str(file.parent / "printed.yaml"))[0] == 0
    assert [run.epochs for run in executor[-1][1]] == [0, 0]


def test_ctrl_c_says_that_the_same_command_goes_on(command, file, monkeypatch):
    made = InProcess(Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr(work, "create", lambda config, runs: made)
    code, out, err = command("sweep", "--trust-code", "--config", str(file))
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
        display(names[0], "done", {"result": {"test_accuracy": 0.8125}, "folder": "f"})
        display(names[0], ENDED, {**ended("done"), "before": False})
        display(names[1], "again", {"error": "lost"})
        assert bars() == {"runs": (1, 4), "run-2 level 2 of 9": (1, 4)}
    said = capsys.readouterr().err
    assert (
        "2/5 run-0: done, test accuracy 81.25 %" in said
        and "run-1: lost; it goes on from its last epoch" in said
        and "kept" not in said
    )
