"""Carry out the runs of a sweep that are not done; their table, and a record of each failure."""

import dataclasses
import functools
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathex.data import fingerprint
from pathex.errors import InvalidInput, PathexError, refusing
from pathex.experiments.runs import WITHOUT_EFFECT, RunConfig, check_same, finished_result, settings, to_csv
from pathex.experiments.sweep.work import ENDED, Executor, Job, Message, ended
from pathex.files import read, replacing, write_bytes, write_json

if TYPE_CHECKING:
    import pandas as pd

FAILED = "failed.json"
_ALWAYS = ("method", "sparsity", "seed")
_MEASURED = ("test_accuracy", "test_miou", "kept", "total", "dead_layers", "prune_seconds", "train_seconds")

SweepEvents = Callable[[str, str, dict[str, Any]], None]
"""Receiver of messages: ``(name of the run, kind, payload)``."""

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_IF_BUSY = 2.0


def record_failure(folder: Path, outcome: Mapping[str, Any], attempts: int) -> None:
    """Write ``failed.json``: ``error`` and ``traceback`` of the last attempt, and how many there were."""
    folder.mkdir(parents=True, exist_ok=True)
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    known = {"error": outcome["error"], "traceback": outcome["traceback"], "attempts": attempts, "time": when}
    write_json(folder / FAILED, {"status": "failed", **known})


class Table:
    """``results.csv`` and, where pyarrow is installed, ``results.parquet``: one row for each run of a sweep."""

    def __init__(self, out: Path, runs: Mapping[str, RunConfig]) -> None:
        self.path = out / "results.csv"
        self.parquet = find_spec("pyarrow") is not None
        self._out, self._runs = out, runs
        self._settings = _columns(runs)
        self._finished: dict[str, dict[str, Any]] = {}
        self._mark = functools.cache(fingerprint)  # many runs share their files

    def finished(self, name: str) -> bool:
        """Whether a run is done; no for what cannot be read or has other settings: carrying it out tells why."""
        if name not in self._finished:
            folder = self._out / name
            with suppress(PathexError):
                if (result := finished_result(folder)) is not None:
                    check_same(folder, self._runs[name], self._mark)
                    self._finished[name] = result
        return name in self._finished

    def write(self) -> None:
        """Write the files, each in one step."""
        import pandas as pd
        from filelock import FileLock

        rows = [self._row(name) for name in self._runs]
        frame = pd.DataFrame(rows).dropna(axis="columns", how="all").convert_dtypes()
        if "error" not in frame:
            frame["error"] = pd.Series([None] * len(frame), dtype="string")
        self._out.mkdir(parents=True, exist_ok=True)  # someone may have cleared it away meanwhile
        # Two sweeps may share the folder, and the temporary name has no room for two.
        with FileLock(self._out / ".results.lock"):
            write_bytes(self.path, to_csv(frame).encode())
            if self.parquet:
                with replacing(self.path.with_suffix(".parquet")) as temporary:
                    frame.to_parquet(temporary, index=False)

    def _row(self, name: str) -> dict[str, Any]:
        result = self._finished[name] if self.finished(name) else {}
        error = None if result else _read_error(self._out / name / FAILED)
        status = "done" if result else "unfinished" if error is None else "failed"
        known = {"name": name, "status": status, **self._settings.loc[name]}
        return {**known, **{key: result.get(key) for key in _MEASURED}, "error": error}


def _read_error(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        return str(read(path)["error"])
    except (InvalidInput, KeyError, TypeError):
        return f"{path.name} cannot be read"


def _columns(runs: Mapping[str, RunConfig]) -> "pd.DataFrame":
    """The settings that are not the same in all runs, and a few that are always of interest; one type a column."""
    import pandas as pd

    flat = {run: _flat(config) for run, config in runs.items()}
    frame = pd.DataFrame.from_dict(flat, orient="index").astype(object)
    # As text, so that a setting that is null is told from one that plays no part in a run.
    dumped = {run: {name: json.dumps(value) for name, value in values.items()} for run, values in flat.items()}
    texts = pd.DataFrame.from_dict(dumped, orient="index")
    order = [field.name for field in dataclasses.fields(RunConfig)]
    kept = [
        name
        for name in sorted(frame, key=lambda name: order.index(name.partition(".")[0]))
        # An option that only some runs give is a difference; a setting that plays no part in some is none.
        if name in _ALWAYS or texts[name].nunique(dropna="." not in name) > 1
    ]
    for name in kept:
        if pd.api.types.infer_dtype(frame[name], skipna=True) in {"mixed", "mixed-integer"}:
            frame[name] = frame[name].map(str, na_action="ignore")
    return frame[kept]


def _flat(config: RunConfig) -> dict[str, Any]:
    """The settings that count for a run, options under dotted names, lists and mappings as text."""
    flat: dict[str, Any] = {}
    for name, value in settings(config).items():
        if name in WITHOUT_EFFECT.get(config.method, ()) and name not in _ALWAYS:
            continue
        options = name.endswith("_options")
        flat |= {f"{name}.{option}": each for option, each in value.items()} if options else {name: value}
    return {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in flat.items()}


@dataclass(frozen=True)
class SweepResult:
    """What came of a sweep.

    Attributes:
        table: The file with all results; ``parquet`` tells whether a parquet file stands beside it.
        done: How many runs are done, ``before`` of them before.
        failed: One line for each run that failed, by name.
    """

    table: Path
    parquet: bool
    done: int
    before: int
    failed: Mapping[str, str]


def sweep(
    runs: Mapping[str, RunConfig],
    out: Path,
    executor: Callable[[], Executor],
    *,
    retries: int = 2,
    on_event: SweepEvents | None = None,
) -> SweepResult:
    """Carry out every run that is not done, and write the table after each.

    The failure of a run is recorded in its folder (``failed.json``) and does not end the sweep; the next sweep tries
    that run again. A run that another process works on is waited for.

    Args:
        runs: Settings by name of the run's folder, as ``plan`` gives them.
        out: Folder of the runs.
        executor: Makes what carries them out; not called where all is done.
        retries: How often a run is started again after its process was lost.
        on_event: Receives the messages about runs: ``start``, the events of a run, ``warning`` {message}, ``busy`` {},
            ``again`` {error}, and ``ended`` {status, error, traceback, before} once for each run.

    Returns:
        What came of it.

    Raises:
        InvalidInput: If the folder cannot be made, its table cannot be written, or ``torchrun`` started several
            processes, each of which would carry out the whole sweep.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1 and "LOCAL_RANK" in os.environ:
        raise InvalidInput(f"a sweep in each of {processes} processes; allowed: a sweep in one, without torchrun")
    with refusing(f"out: the folder {out} cannot be made ({{}})", OSError):
        out.mkdir(parents=True, exist_ok=True)
    state = _State(runs, out, retries, on_event or (lambda name, kind, payload: None))
    state.skip_finished()
    before = state.done
    if state.open:
        with executor() as made:
            state.work(made)
        state.write_table()
    return SweepResult(state.table.path, state.table.parquet, state.done, before, state.failed)


class _State:
    """The runs of a sweep that are open, and what became of the others."""

    def __init__(self, runs: Mapping[str, RunConfig], out: Path, retries: int, on_event: SweepEvents) -> None:
        self.open, self.table, self.done = dict(runs), Table(out, runs), 0
        self.failed: dict[str, str] = {}
        self._out, self._retries, self._tell = out, retries, on_event
        self._lost: Counter[str] = Counter()
        self._later: deque[tuple[float, str]] = deque()

    def skip_finished(self) -> None:
        for name in [name for name in self.open if self.table.finished(name)]:
            self._close(name, {**ended("done"), "before": True})
        self.write_table()

    def work(self, executor: Executor) -> None:
        def submit(name: str) -> None:
            executor.submit(Job(name, self.open[name], executor.threads))

        for name in self.open:
            submit(name)
        while self.open:
            for message in executor.listen(_SECONDS_BETWEEN_LOOKS):
                if message.name in self.open:  # what comes after the end of a run is old
                    self._hear(message, submit)
            while self._later and self._later[0][0] <= time.monotonic():
                submit(self._later.popleft()[1])

    def _hear(self, message: Message, submit: Callable[[str], None]) -> None:
        name, kind, payload = message
        if kind != ENDED:
            self._tell(name, kind, payload)
        elif payload["status"] == "busy":
            self._tell(name, "busy", {})
            self._later.append((time.monotonic() + _SECONDS_IF_BUSY, name))
        elif payload["status"] == "lost" and self._lost[name] < self._retries:
            self._lost[name] += 1
            self._tell(name, "again", {"error": payload["error"]})
            submit(name)
        else:
            self._close(name, {**payload, "before": False})
            with suppress(InvalidInput):  # a full disk may have room again; the end of the sweep tells
                self.write_table()

    def _close(self, name: str, outcome: dict[str, Any]) -> None:
        folder = self._out / name
        if outcome["status"] == "done":
            self.done += 1
            with suppress(OSError):  # what is done counts as done, whatever lies beside it
                (folder / FAILED).unlink(missing_ok=True)
        else:
            outcome["status"] = "failed"
            self.failed[name] = outcome["error"]
            # It is told in any case, and what fills the disk may well be why the run failed.
            with suppress(OSError):
                record_failure(folder, outcome, self._lost[name] + 1)
        del self.open[name]
        self._tell(name, ENDED, outcome)

    def write_table(self) -> None:
        with refusing(f"{self.table.path} cannot be written ({{}})", OSError):
            self.table.write()
