"""``pathex run``: prune, train, evaluate."""

from pathex.cli.parser import Command
from pathex.experiments.runs import RunConfig


def _execute(config: RunConfig) -> None:
    from pathex.cli.console import RunDisplay
    from pathex.distributed import is_first_process
    from pathex.experiments.runs import run

    with RunDisplay() as display:
        result = run(config, on_event=display.of(config.method))
    if is_first_process():
        print(result.folder)


COMMAND = Command(
    "prune, train and evaluate one network",
    _execute,
    RunConfig,
    "Prunes one network, trains it and measures it on the test images. Prints the run folder last. The same command "
    "again resumes what was stopped, or says done.",
    resumes=True,
)
