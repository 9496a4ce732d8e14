import contextlib
import errno
import json
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from experiments.sweep.conftest import InProcess
from pathex.errors import InvalidInput
from pathex.experiments.runs import RunConfig, locked
from pathex.experiments.sweep import Plan, SweepConfig, plan, sweep, sweeper
from pathex.experiments.sweep.work import ENDED, Job, carry_out, ended
from pathex.masks import replacing


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(sweeper, "_SECONDS_IF_BUSY", 0.0)


@pytest.fixture
def planned(tiny, tmp_path):
    """Three runs, of which the last one fails by itself."""
    grid = {"seed": [0, 1]}
    return plan(SweepConfig(settings=tiny, grid=grid, list=({"data": "npz:nowhere.npz"},), out=str(tmp_path / "out")))


def carried_out(planned, executor, **options):
    (out,) = {run.out for run in planned.runs.values()}
    return sweep(planned.runs, Path(out), lambda: executor, **options)


def test_a_failed_run_is_told_and_does_not_end_the_sweep(planned, tmp_path):
    heard = []
    executor = InProcess()
    result = carried_out(planned, executor, on_event=lambda *message: heard.append(message))
    *good, bad = planned.runs
    assert (result.done, result.before, list(result.failed)) == (2, 0, [bad])
    assert executor.closed and executor.seen == list(planned.runs)
    record = json.loads((tmp_path / "out" / bad / "failed.json").read_text())
    assert "nowhere.npz" in record["error"] == result.failed[bad]
    assert record["attempts"] == 1 and "Traceback" in record["traceback"]
    assert [name for name, kind, _ in heard if kind == ENDED] == list(planned.runs)
    assert Counter(kind for name, kind, _ in heard if name == good[0])["epoch"] == 2

    table = pd.read_csv(result.table)
    assert list(table["name"]) == list(planned.runs)
    assert list(table["status"]) == ["done", "done", "failed"]
    assert list(table["seed"]) == [0, 1, 0] and "epochs" not in table and "data" in table
    for name, row in zip(good, table.itertuples(), strict=False):
        known = json.loads((tmp_path / "out" / name / "result.json").read_text())
        assert row.test_accuracy == known["test_accuracy"] and row.kept == known["kept"]
    assert "nowhere.npz" in table["error"][2] and table["error"][:2].isna().all()


def test_the_parquet_file_holds_the_same(planned):
    pytest.importorskip("pyarrow")
    result = carried_out(planned, InProcess())
    assert result.parquet
    both = pd.read_csv(result.table).convert_dtypes(), pd.read_parquet(result.table.with_suffix(".parquet"))
    pd.testing.assert_frame_equal(*both)


def test_without_pyarrow_there_is_the_csv_file_alone(planned, monkeypatch):
    monkeypatch.setattr("pathex.experiments.sweep.results.find_spec", lambda name: None)
    result = carried_out(planned, InProcess())
    assert not result.parquet and result.table.exists() and not result.table.with_suffix(".parquet").exists()


def test_the_next_sweep_carries_out_what_is_left(planned, tmp_path):
    *_, bad = planned.runs
    first = carried_out(planned, InProcess(lambda job: ended("failed", "no luck") if job.config.seed == 1 else None))
    assert len(first.failed) == 2 and set(first.failed.values()) > {"no luck"}
    second = InProcess()
    result = carried_out(planned, second)
    assert second.seen == list(planned.runs)[1:]
    assert (result.done, result.before, list(result.failed)) == (2, 1, [bad])
    assert [path.parent.name for path in (tmp_path / "out").glob("*/failed.json")] == [bad]


def test_nothing_is_started_where_all_is_done(planned):
    done = Plan(dict(list(planned.runs.items())[:2]), 0)
    carried_out(done, InProcess())
    result = sweep(done.runs, Path(next(iter(done.runs.values())).out), lambda: pytest.fail("started"))
    assert (result.done, result.before, result.failed) == (2, 2, {})
    assert list(pd.read_csv(result.table)["status"]) == ["done", "done"]


@pytest.mark.parametrize("losses", [2, 3])
def test_a_lost_process_is_replaced_a_few_times(planned, losses, tmp_path):
    left = {1: losses}
    again = []

    def world(job):
        if job.config.seed == 1 and left[1]:
            left[1] -= 1
            return ended("lost", "killed")
        return None

    two = Plan(dict(list(planned.runs.items())[:2]), 0)
    heard = lambda name, kind, payload: again.append(name) if kind == "again" else None  # noqa: E731
    result = carried_out(two, InProcess(world), retries=2, on_event=heard)
    name = list(two.runs)[1]
    assert again == [name] * 2
    assert result.failed == ({} if losses == 2 else {name: "killed"})
    if losses == 3:
        assert json.loads((tmp_path / "out" / name / "failed.json").read_text())["attempts"] == 3


def test_a_run_that_another_process_has_is_waited_for(planned, tmp_path):
    first = next(iter(planned.runs))
    folder = tmp_path / "out" / first
    folder.mkdir(parents=True)
    held = locked(folder)
    held.__enter__()
    order = []

    def world(job):
        order.append(job.name)
        if len(order) == 4:  # all others are through
            held.__exit__(None, None, None)

    result = carried_out(planned, InProcess(world))
    assert result.done == 2 and order.count(first) >= 2 and order[1:3] == list(planned.runs)[1:]


def test_a_run_taken_by_another_process_while_it_loads_is_busy_too(tiny, tmp_path, monkeypatch):
    made = plan(SweepConfig(settings=tiny, grid={"seed": [0]}, out=str(tmp_path)))
    ((name, config),) = made.runs.items()
    (tmp_path / name).mkdir()
    monkeypatch.setattr("pathex.experiments.sweep.work._check_free", lambda folder: None)
    with locked(tmp_path / name):
        outcome = carry_out(Job(name, config, 1), lambda kind, payload: None)
    assert outcome["status"] == "busy"


def test_messages_after_the_end_of_a_run_are_old(planned):
    class Late(InProcess):
        def listen(self, seconds):
            messages = super().listen(seconds)
            return [*messages, *messages]

    heard = Counter()
    carried_out(planned, Late(), on_event=lambda name, kind, payload: heard.update([kind]))
    assert heard[ENDED] == 3 and heard["start"] == 3


def test_a_folder_with_other_settings_under_the_same_name_fails_with_the_reason(planned, tmp_path):
    carried_out(planned, InProcess())
    name = next(iter(planned.runs))
    config = tmp_path / "out" / name / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 3"))
    assert "other settings" in carried_out(planned, InProcess()).failed[name]


def test_the_columns_are_what_differs(tmp_path):
    listed = (
        {"method": "dense"},
        {"method": "px", "rounds": 3, "method_options.redraw": True, "allocation": "erk"},
        {"method": "px", "rounds": 3, "allocation": {"conv.weight": 0.5}},
    )
    made = plan(SweepConfig(settings={"epochs": 1, "images_per_class": 2}, list=listed, out=str(tmp_path)))
    result = carried_out(made, InProcess(lambda job: ended("failed", "not tried")))
    table = pd.read_csv(result.table)
    assert list(table) == [
        "name", "status", "method", "sparsity", "allocation", "method_options.redraw", "seed", "error"
    ]  # fmt: skip
    assert table["sparsity"].tolist() == [0, 0.9, 0.9]  # a dense run has no pruning settings
    assert table["allocation"].tolist()[1:] == ["erk", '{"conv.weight": 0.5}'] and pd.isna(table["allocation"][0])


def test_a_folder_that_cannot_be_made_is_bad_input(planned, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="cannot be made"):
        sweep(planned.runs, tmp_path / "file" / "out", InProcess)


def test_warnings_of_pathex_are_messages(tiny, tmp_path):
    heard = []
    config = RunConfig(**{**tiny, "sparsity": 0.98, "epochs": 0, "out": str(tmp_path)})  # a layer collapses
    name = next(iter(plan(SweepConfig(settings={**tiny, "sparsity": 0.98, "epochs": 0}, grid={"seed": [0]})).runs))
    outcome = carry_out(Job(name, config, 1), lambda kind, payload: heard.append(payload.get("message", kind)))
    assert outcome["status"] == "done" and any("lost" in message or "collaps" in message for message in heard)


def test_a_full_disk_fails_the_runs_and_not_the_sweep_that_tells_of_it(planned, tmp_path, monkeypatch):
    full = {"results.csv": False}

    @contextlib.contextmanager
    def no_room(path):
        if full.get(path.name, True):
            raise OSError(errno.ENOSPC, "No space left on device")
        with replacing(path) as temporary:
            yield temporary

    monkeypatch.setattr("pathex.experiments.runs.folder.replacing", no_room)
    monkeypatch.setattr("pathex.experiments.sweep.results.replacing", no_room)
    monkeypatch.setattr("pathex.experiments.sweep.results.find_spec", lambda name: None)
    result = carried_out(planned, InProcess())
    assert list(result.failed) == list(planned.runs)
    assert all("No space left" in result.failed[name] for name in list(planned.runs)[:2])

    executor, ends = InProcess(), list[str]()

    def fill(name, kind, payload):
        full["results.csv"] = True
        ends.extend([name] if kind == ENDED else [])

    with pytest.raises(InvalidInput, match=r"results\.csv cannot be written \(No space left on device\)"):
        carried_out(planned, executor, on_event=fill)
    assert ends == list(planned.runs) and executor.closed


def test_a_table_that_cannot_be_written_shows_before_anything_runs(planned, tmp_path):
    (tmp_path / "out" / "results.csv" / "in the way").mkdir(parents=True)
    executor = InProcess()
    with pytest.raises(InvalidInput, match=r"results\.csv cannot be written"):
        carried_out(planned, executor)
    assert not executor.seen


def test_folders_that_are_deleted_meanwhile_are_made_again(planned, tmp_path):
    def world(job):
        shutil.rmtree(tmp_path / "out")
        return None if job.config.seed == 1 else ended("failed", "why")

    result = carried_out(planned, InProcess(world))
    assert result.done == 1 and result.table.exists()
    assert (tmp_path / "out" / list(planned.runs)[-1] / "failed.json").exists()


def test_a_sweep_in_each_process_of_torchrun_is_refused(planned, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InvalidInput, match="2 processes; allowed: a sweep in one"):
        carried_out(planned, InProcess())
    assert not (tmp_path / "out").exists()
