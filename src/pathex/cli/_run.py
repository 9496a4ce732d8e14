"""``pathex run``: prune, train, evaluate."""

from collections.abc import Sequence

from pathex.cli._arguments import parse
from pathex.runs.config import RunConfig

__all__ = ["execute"]

_DESCRIPTION = """Prunes one network, trains it and measures it on the test images. Prints the run folder last. The same
command again resumes what was stopped, or says done."""


def execute(words: Sequence[str]) -> None:
    """Carries out the command.

    Args:
        words: What follows ``pathex run``.
    """
    config = parse("run", RunConfig, words, _DESCRIPTION)
    from pathex.cli._console import RunDisplay
    from pathex.distributed import is_first_process
    from pathex.runs import run

    with RunDisplay() as display:
        display.begin(config.method)
        result = run(config, on_event=display)
    if is_first_process():
        print(result.folder)
