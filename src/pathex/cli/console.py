"""Where text goes: tables to standard output, progress to standard error and only on a terminal."""

import sys
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from pathex.experiments.sweep import Plan, SweepResult
    from pathex.train import Events

_PIPED_WIDTH = 120
_MOST_LINES = 10
_METRICS = MappingProxyType({"accuracy": "accuracy", "miou": "mIoU"})


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the process


def console() -> Console:
    """The console of results."""
    return _Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False, markup=False)


def table(*columns: str, right: int = 0) -> Table:
    """An empty table in the style of all commands."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, heading in enumerate(columns):
        numeric = number >= len(columns) - right
        made.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric or number == 0)
    return made


def show(shown: Table) -> None:
    """Print a table without breaking a word: headings become narrower, then the table wider than the terminal."""
    screen = console()
    if _needed(shown) > screen.width:
        for column in shown.columns:
            column.header = str(column.header).replace(" ", "\n")
    screen.width = max(screen.width, _needed(shown))
    screen.print(shown)


def _needed(shown: Table) -> int:
    """Columns of text that a table takes at least."""
    total = 0
    for column in shown.columns:
        texts = [str(cell) for cell in (column.header, *column.cells)]
        pieces = [piece for text in texts for piece in (text.split("\n") if column.no_wrap else text.split())]
        total += max(map(len, pieces), default=0) + 2
    return total


_PARTS = {
    "prune_round": ("prune", "pruning, round", "round"),
    "search_step": ("search", "searching, step", "step"),
}


class RunDisplay(Progress):
    """Shows the events of runs as bars on a terminal; facts as lines, and without a terminal a few more of them.

    Args:
        lines: Whether there are lines.
    """

    def __init__(self, *, lines: bool = True) -> None:
        screen = _Console(stderr=True, highlight=False, markup=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(table_column=Column(min_width=7, no_wrap=True)),  # a narrow terminal cuts others
            TextColumn("{task.fields[note]}", style="dim"),
        )
        # The time that is left follows from the whole time so far: a run of a sweep may take hours.
        super().__init__(
            *columns, console=screen, transient=True, disable=not screen.is_terminal, speed_estimate_period=1e9
        )
        self._lines = lines
        self._bars: dict[tuple[str, str], TaskID] = {}
        self._tenths: dict[str, int] = {}

    def of(self, label: str) -> "Events":
        """What shows the events of one run."""
        return partial(self.show, label)

    def show(self, label: str, kind: str, payload: dict[str, Any]) -> None:
        """Shows one event of a run; kinds it does not know are passed over."""
        if kind in _PARTS:
            self._part(label, *_PARTS[kind], payload)
        elif kind == "prune_done":
            self._fact(label, f"kept {payload['kept']:,} of {payload['total']:,} weights in {payload['seconds']:.1f} s")
        elif kind == "narrowed":
            size = ": {parameters:,} parameters, {multiply_adds:,} multiply-adds".format
            known = "" if payload["parameters"] is None else size(**payload)
            self._fact(label, f"dense with width {payload['width']:g}{known}")
        elif kind == "engine":
            self._fact(label, f"engine {payload['engine']}: {payload['why']}")
        elif kind == "step":
            done = payload["epoch"] - 1 + payload["step"] / payload["steps"]
            self._advance(label, _training(payload) or "train", done, payload["epochs"])
        elif kind == "epoch":
            self._epoch(label, payload)
        elif kind == "resumed":
            self._fact(label, _resumed(payload))
        elif kind == "done":
            self.clear(label)
            if measured := _measured(payload["result"]):
                self._fact(label, measured)

    def _part(self, label: str, stage: str, doing: str, name: str, payload: dict[str, Any]) -> None:
        done, total = payload[name], payload[f"{name}s"]
        note = f"density {payload['density']:.4g}" if "density" in payload else ""
        self._advance(label, stage, done, total, note=note)
        # Rounds may be left out: a line where another tenth of them is over.
        tenth = _MOST_LINES * done // total
        if self.disable and done < total and (done == 1 or tenth > self._tenths.get(label, 0)):
            self._fact(label, f"{doing} {done} of {total}{note and f': {note}'}")
        self._tenths[label] = tenth % _MOST_LINES

    def _epoch(self, label: str, payload: dict[str, Any]) -> None:
        epoch, epochs, training = payload["epoch"], payload["epochs"], _training(payload)
        note = f"loss {payload['train_loss']:.3f}"
        for metric, name in _METRICS.items():
            if f"train_{metric}" in payload:
                note += f", {name} {100 * payload[f'train_{metric}']:.1f} %"
        self._advance(label, training or "train", epoch, epochs, note=note)
        # A run that finds its mask by training has many trainings: a line for each of them is enough.
        every = epochs if "level" in payload else -(-epochs // _MOST_LINES)
        first = epoch == 1 and "level" not in payload  # a sign of life
        if self.disable and (first or epoch % every == 0 or epoch == epochs):
            self._fact(label, f"{training + ', ' if training else ''}epoch {epoch} of {epochs}: {note}")

    def _advance(self, label: str, stage: str, done: float, total: float, **note: Any) -> None:
        if (label, stage) not in self._bars:
            self.clear(label)
            self._bars[label, stage] = self.add_task(f"{label} {stage}", total=total, note="")
        self.update(self._bars[label, stage], completed=done, total=total, **note)

    def _fact(self, label: str, text: str) -> None:
        if self._lines:
            self.say(f"{label}: {text}")

    def say(self, line: str) -> None:
        """Prints a line, above the bars."""
        self.console.print(line, soft_wrap=True)

    def clear(self, label: str) -> None:
        """Removes the bars of a run."""
        for known in [known for known in self._bars if known[0] == label]:
            self.remove_task(self._bars.pop(known))


class SweepDisplay(RunDisplay):
    """Shows where a sweep stands: bars on a terminal, of all runs and of those that go on; a line for each that ended.

    Args:
        planned: The runs.
    """

    def __init__(self, planned: "Plan") -> None:
        super().__init__(lines=False)
        self._planned, self._over = planned, 0
        self._found: dict[str, str] = {}
        self._whole = self.add_task("runs", total=len(planned.runs), note="")
        self.advance(self._whole, 0)  # the time that is left is counted from here

    def __enter__(self) -> "SweepDisplay":
        runs, duplicates = len(self._planned.runs), self._planned.duplicates
        same = f"; {duplicates} more would be the same as one of these" if duplicates else ""
        self.say(f"{runs} run{'' if runs == 1 else 's'}{same}")
        self.start()
        return self

    def __call__(self, name: str, kind: str, payload: dict[str, Any]) -> None:
        """Shows one message; kinds it does not know are passed over."""
        if kind in {"ended", "again", "busy"}:
            self.clear(name)
        if kind == "ended":
            self._over += 1
            if payload["before"]:
                self.update(self._whole, total=len(self._planned.runs) - self._over)
            else:
                self.advance(self._whole)
                end = self._found.get(name, "done") if payload["status"] == "done" else f"failed: {payload['error']}"
                self.say(f"{self._over}/{len(self._planned.runs)} {name}: {end}")
        elif kind == "again":
            self.say(f"{name}: {payload['error']}; it goes on from its last epoch")
        elif kind == "busy":
            self.say(f"{name}: in use by another process; waiting for it")
        elif kind == "warning":
            self.say(f"{name}: warning: {payload['message']}")
        else:
            if kind == "done" and (measured := _measured(payload["result"])):
                self._found[name] = f"done, {measured}"
            self.show(name, kind, payload)

    def summarise(self, result: "SweepResult") -> None:
        """Shows what has become of all runs."""
        before = f" ({result.before} of them before)" if result.before else ""
        self.say(f"{result.done} done{before}, {len(result.failed)} failed")
        for name, error in result.failed.items():
            self.say(f"failed: {name}: {error}")
        if not result.parquet:
            self.say("pyarrow is not installed, so there is a CSV file only, and no parquet file")


def _measured(result: Mapping[str, Any]) -> str:
    """What a run measured on the test images, in words."""
    found = {name: result.get(f"test_{metric}") for metric, name in _METRICS.items()}
    return ", ".join(f"test {name} {100 * value:.2f} %" for name, value in found.items() if value is not None)


def _training(payload: dict[str, Any]) -> str:
    """Which of several trainings of a run an event is about; empty where there is one."""
    if "level" in payload:
        return f"level {payload['level']} of {payload['levels']}"
    return f"task {payload['task']}" if "task" in payload else ""


def _resumed(payload: dict[str, Any]) -> str:
    training = _training(payload)
    if payload.get("stage") == "done":
        return "done before"
    if "epoch" in payload:
        return f"resumed after epoch {payload['epoch']}{' of ' + training if training else ''}"
    if payload.get("stage") == "level":
        return f"{training} was done before"
    return "resumed with the mask of before"
