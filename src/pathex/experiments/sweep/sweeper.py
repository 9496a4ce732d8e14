"""Carry out the runs of a sweep that are not done."""

import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathex.errors import InvalidInput
from pathex.experiments.runs import RunConfig
from pathex.experiments.sweep.executors import Executor
from pathex.experiments.sweep.results import FAILED, Table, record_failure
from pathex.experiments.sweep.work import ENDED, Job, Message, ended

SweepEvents = Callable[[str, str, dict[str, Any]], None]
"""Receiver of messages: ``(name of the run, kind, payload)``."""

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_IF_BUSY = 2.0


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
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"out: the folder {out} cannot be made ({error.strerror})") from error
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
            with contextlib.suppress(InvalidInput):  # a full disk may have room again; the end of the sweep tells
                self.write_table()

    def _close(self, name: str, outcome: dict[str, Any]) -> None:
        folder = self._out / name
        if outcome["status"] == "done":
            self.done += 1
            with contextlib.suppress(OSError):  # what is done counts as done, whatever lies beside it
                (folder / FAILED).unlink(missing_ok=True)
        else:
            outcome["status"] = "failed"
            self.failed[name] = outcome["error"]
            # It is told in any case, and what fills the disk may well be why the run failed.
            with contextlib.suppress(OSError):
                record_failure(folder, outcome, self._lost[name] + 1)
        del self.open[name]
        self._tell(name, ENDED, outcome)

    def write_table(self) -> None:
        try:
            self.table.write()
        except OSError as error:
            raise InvalidInput(f"{self.table.path} cannot be written ({error.strerror or error})") from error
