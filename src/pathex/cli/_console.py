"""Where text goes: tables to standard output, progress to standard error and only on a terminal."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from pathex import Mask

__all__ = ["RunDisplay", "console", "mask_table", "table"]

_PIPED_WIDTH = 120
_MOST_LINES = 10


def console() -> Console:
    """The console of results.

    Returns:
        A console on standard output, wide enough for tables when it is no terminal.
    """
    terminal = sys.stdout.isatty()
    return Console(width=None if terminal else _PIPED_WIDTH, highlight=False)


def table(*columns: str, right: int = 0) -> Table:
    """An empty table in the style of all commands.

    Args:
        columns: Headings.
        right: How many of the last columns hold numbers.

    Returns:
        The table.
    """
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, heading in enumerate(columns):
        numeric = number >= len(columns) - right
        made.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric or number == 0)
    return made


def mask_table(mask: "Mask") -> Table:
    """What a mask keeps of each layer and of all.

    Args:
        mask: The mask.

    Returns:
        A table with a row for each layer; layers that keep nothing stand out.
    """
    counts = mask.counts()
    layers = table("layer", "kept", "of", "density", right=3)
    for name, (kept, total) in counts.items():
        style = "bold red" if kept == 0 else None
        layers.add_row(name, f"{kept:,}", f"{total:,}", f"{kept / total:.4f}", style=style)
    layers.add_section()
    layers.add_row("all", f"{mask.kept:,}", f"{mask.total:,}", f"{mask.density:.4f}", style="bold")
    return layers


class RunDisplay:
    """Shows the events of runs as bars on a terminal, as a few short lines elsewhere.

    A context manager; its instance is the ``on_event`` of :func:`pathex.runs.run`.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._label = ""
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "RunDisplay":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, label: str) -> None:
        """Starts to show another run.

        Args:
            label: Its name for people.
        """
        self._clear()
        self._label = label

    def __call__(self, kind: str, payload: dict[str, Any]) -> None:
        """Shows one event; kinds it does not know are passed over.

        Args:
            kind: Name of the event.
            payload: What belongs to it.
        """
        if kind == "prune_round":
            self._advance("prune", payload["round"], payload["rounds"], f"density {payload['density']:.4g}")
        elif kind == "prune_done":
            self._line(f"kept {payload['kept']:,} of {payload['total']:,} weights in {payload['seconds']:.1f} s")
        elif kind == "step":
            done = payload["epoch"] - 1 + payload["step"] / payload["steps"]
            self._advance("train", done, payload["epochs"])
        elif kind == "epoch":
            self._epoch(payload)
        elif kind == "resumed":
            self._line(_resumed(payload))
        elif kind == "done":
            self._clear()
            if payload["result"].get("test_accuracy") is not None:
                self._line(f"test accuracy {100 * payload['result']['test_accuracy']:.2f} %")

    def _epoch(self, payload: dict[str, Any]) -> None:
        epoch, epochs = payload["epoch"], payload["epochs"]
        note = f"loss {payload['train_loss']:.3f}, accuracy {100 * payload['train_accuracy']:.1f} %"
        self._advance("train", epoch, epochs, note)
        every = -(-epochs // _MOST_LINES)
        if self._progress.disable and (epoch % every == 0 or epoch == epochs):
            self._line(f"epoch {epoch} of {epochs}: {note}")

    def _advance(self, stage: str, done: float, total: float, note: str | None = None) -> None:
        if stage not in self._tasks:
            self._clear()
            self._tasks[stage] = self._progress.add_task(f"{self._label} {stage}".strip(), total=total, note="")
        self._progress.update(self._tasks[stage], completed=done, total=total)
        if note is not None:
            self._progress.update(self._tasks[stage], note=note)

    def _line(self, text: str) -> None:
        line = f"{self._label}: {text}" if self._label else text
        self._console.print(line, soft_wrap=True, markup=False)

    def _clear(self) -> None:
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks.clear()


def _resumed(payload: dict[str, Any]) -> str:
    if payload.get("stage") == "done":
        return "done before"
    if "epoch" in payload:
        return f"resumed after epoch {payload['epoch']}"
    return "resumed with the mask of before"
