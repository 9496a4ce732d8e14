"""``pathex sweep``: many runs from one file."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathex.cli.parser import Command
from pathex.experiments.sweep import SweepConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pathex.experiments.sweep import Plan, SweepResult

_MOST_RUNNING = 32


def _execute(config: SweepConfig) -> int:
    from pathex.experiments.sweep import create, plan, sweep

    planned = plan(config)
    with SweepDisplay(planned) as display:
        result = sweep(
            planned.runs,
            Path(config.out),
            lambda: create(config, planned.runs.values()),
            retries=config.retries,
            on_event=display,
        )
    display.summarise(result)
    print(result.table)
    return 1 if result.failed else 0


class SweepDisplay:
    """Shows where a sweep stands: a live table on a terminal; a line for each run that ended, everywhere."""

    def __init__(self, planned: "Plan") -> None:
        from rich.console import Console
        from rich.live import Live

        from pathex.experiments.sweep import Progress

        self._planned = planned
        self._progress = Progress(planned.runs)
        screen = Console(stderr=True, highlight=False)
        self._say = partial(screen.print, soft_wrap=True, markup=False)
        # On a terminal only: elsewhere it would print its last state.
        live = Live(get_renderable=self._table, console=screen, refresh_per_second=4, transient=True)
        self._live = live if screen.is_terminal else None

    def __enter__(self) -> "SweepDisplay":
        runs, duplicates = len(self._planned.runs), self._planned.duplicates
        same = f"; {duplicates} more would be the same as one of these" if duplicates else ""
        self._say(f"{runs} run{'' if runs == 1 else 's'}{same}")
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, name: str, kind: str, payload: dict[str, Any]) -> None:
        """Shows one message; kinds it does not know are passed over."""
        self._progress(name, kind, payload)
        if kind == "ended" and not payload["before"]:
            counts = self._progress.counts
            over = counts["done"] + counts["failed"]
            outcome = "done" if payload["status"] == "done" else f"failed: {payload['error']}"
            self._say(f"{over}/{len(self._planned.runs)} {name}: {outcome}")
        elif kind == "again":
            self._say(f"{name}: {payload['error']}; it goes on from its last epoch")
        elif kind == "busy":
            self._say(f"{name}: in use by another process; waiting for it")
        elif kind == "warning":
            self._say(f"{name}: warning: {payload['message']}")

    def summarise(self, result: "SweepResult") -> None:
        """Shows what has become of all runs."""
        before = f" ({result.before} of them before)" if result.before else ""
        self._say(f"{result.done} done{before}, {len(result.failed)} failed")
        for name, error in result.failed.items():
            self._say(f"failed: {name}: {error}")
        if not result.parquet:
            self._say("pyarrow is not installed, so there is a CSV file only, and no parquet file")

    def _table(self) -> "RenderableType":
        from rich.console import Group
        from rich.text import Text

        from pathex.cli.console import table

        shown = table("run", "stage", "loss", right=1)
        running = list(self._progress.running.items())
        for name, stage in running[:_MOST_RUNNING]:
            shown.add_row(name, stage.text, "" if stage.loss is None else f"{stage.loss:.3f}")
        if len(running) > _MOST_RUNNING:
            shown.add_row(f"and {len(running) - _MOST_RUNNING} more", "", "")
        line = ", ".join(f"{count} {status}" for status, count in self._progress.counts.items())
        left = self._progress.seconds_left()
        return Group(shown, Text(line if left is None else f"{line}; about {_duration(left)} left", style="bold"))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "a minute"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


COMMAND = Command(
    "many runs from one file, here or on a cluster, and one table of their results",
    _execute,
    SweepConfig,
    "Carries out all runs of a sweep file, several at a time, and writes one table of their results. Runs that are "
    "done are skipped, runs that were stopped go on, runs that failed are tried again and listed at the end.",
    resumes=True,
)
