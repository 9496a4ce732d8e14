"""Where text goes: tables to standard output, progress to standard error and only on a terminal."""

import sys
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

_PIPED_WIDTH = 120
_MOST_LINES = 10
_METRICS = MappingProxyType({"accuracy": "accuracy", "miou": "mIoU"})


def console() -> Console:
    """The console of results."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)


def table(*columns: str, right: int = 0) -> Table:
    """An empty table in the style of all commands."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, heading in enumerate(columns):
        numeric = number >= len(columns) - right
        made.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric or number == 0)
    return made


class RunDisplay(Progress):
    """Shows the events of runs as bars on a terminal, as a few short lines elsewhere."""

    def __init__(self) -> None:
        screen = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
        )
        super().__init__(*columns, console=screen, transient=True, disable=not screen.is_terminal)
        self._label = ""
        self._bars: dict[str, TaskID] = {}

    def begin(self, label: str) -> None:
        """Starts to show another run."""
        self._clear()
        self._label = label

    def __call__(self, kind: str, payload: dict[str, Any]) -> None:
        """Shows one event; kinds it does not know are passed over."""
        if kind == "prune_round":
            self._advance("prune", payload["round"], payload["rounds"], note=f"density {payload['density']:.4g}")
        elif kind == "prune_done":
            self._line(f"kept {payload['kept']:,} of {payload['total']:,} weights in {payload['seconds']:.1f} s")
        elif kind == "narrowed":
            size = (
                "" if payload["parameters"] is None else ": {parameters:,} parameters, {multiply_adds:,} multiply-adds"
            )
            self._line(f"dense with width {payload['width']:g}{size.format(**payload)}")
        elif kind == "step":
            done = payload["epoch"] - 1 + payload["step"] / payload["steps"]
            self._advance(_training(payload) or "train", done, payload["epochs"])
        elif kind == "epoch":
            self._epoch(payload)
        elif kind == "resumed":
            self._line(_resumed(payload))
        elif kind == "done":
            self._clear()
            for metric, name in _METRICS.items():
                if (value := payload["result"].get(f"test_{metric}")) is not None:
                    self._line(f"test {name} {100 * value:.2f} %")

    def _epoch(self, payload: dict[str, Any]) -> None:
        epoch, epochs, training = payload["epoch"], payload["epochs"], _training(payload)
        note = f"loss {payload['train_loss']:.3f}"
        for metric, name in _METRICS.items():
            if f"train_{metric}" in payload:
                note += f", {name} {100 * payload[f'train_{metric}']:.1f} %"
        self._advance(training or "train", epoch, epochs, note=note)
        # A run that finds its mask by training has many trainings: a line for each of them is enough.
        every = epochs if "level" in payload else -(-epochs // _MOST_LINES)
        first = epoch == 1 and "level" not in payload  # a sign of life
        if self.disable and (first or epoch % every == 0 or epoch == epochs):
            self._line(f"{training + ', ' if training else ''}epoch {epoch} of {epochs}: {note}")

    def _advance(self, stage: str, done: float, total: float, **note: Any) -> None:
        if stage not in self._bars:
            self._clear()
            self._bars[stage] = self.add_task(f"{self._label} {stage}".strip(), total=total, note="")
        self.update(self._bars[stage], completed=done, total=total, **note)

    def _line(self, text: str) -> None:
        line = f"{self._label}: {text}" if self._label else text
        self.console.print(line, soft_wrap=True, markup=False)

    def _clear(self) -> None:
        for bar in self._bars.values():
            self.remove_task(bar)
        self._bars.clear()


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
