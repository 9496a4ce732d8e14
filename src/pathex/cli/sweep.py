"""``pathex sweep``: many runs from one file."""

from pathlib import Path

from pathex.cli.parser import Command
from pathex.experiments.sweep import SweepConfig


def _execute(config: SweepConfig) -> int:
    from pathex.cli.console import SweepDisplay
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


COMMAND = Command(
    "many runs from one file, here or on a cluster, and one table of their results",
    _execute,
    SweepConfig,
    "Carries out all runs of a sweep file, several at a time, and writes one table of their results. Runs that are "
    "done are skipped, runs that were stopped go on, runs that failed are tried again and listed at the end.",
    resumes=True,
)
