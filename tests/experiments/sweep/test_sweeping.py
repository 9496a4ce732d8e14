import contextlib
import errno
import json
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from experiments.sweep.conftest import InProcess
from pathex.experiments.runs import locked
from pathex.experiments.sweep import SweepConfig, plan, sweep, sweeper
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


def first_two(runs):
    return dict(list(runs.items())[:2])


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


def test_the_parquet_file_holds_the_same_and_without_pyarrow_there_is_none(planned, monkeypatch):
    find = "pathex.experiments.sweep.sweeper.find_spec"
    with monkeypatch.context() as patch:
        patch.setattr(find, lambda name: None)
        result = carried_out(planned, InProcess())
    assert not result.parquet and result.table.exists() and not result.table.with_suffix(".parquet").exists()
    pytest.importorskip("pyarrow")
    result = carried_out(planned, InProcess())
    assert result.parquet
    both = pd.read_csv(result.table).convert_dtypes(), pd.read_parquet(result.table.with_suffix(".parquet"))
    pd.testing.assert_frame_equal(*both)


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
    result = sweep(first_two(planned), tmp_path / "out", lambda: pytest.fail("started"))
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
    result = carried_out(first_two(planned), executor, retries=2, on_event=heard)
    name = list(planned)[1]
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

    monkeypatch.setattr("pathex.experiments.runs.folder.replacing", no_room)
    monkeypatch.setattr("pathex.experiments.sweep.sweeper.replacing", no_room)
    monkeypatch.setattr("pathex.experiments.sweep.sweeper.find_spec", lambda name: None)
    result = carried_out(planned, InProcess())
    assert list(result.failed) == list(planned)
    assert all("No space left" in result.failed[name] for name in list(planned)[:2])

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
