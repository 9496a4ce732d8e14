"""One run: prune, train, evaluate, in a folder that can be resumed."""

import importlib
from typing import TYPE_CHECKING, Any

from pathex.experiments.runs.config import (
    PLACE,
    WITHOUT_EFFECT,
    PositiveInt,
    RunConfig,
    TicketConfig,
    allowed_values,
    run_name,
    settings,
)
from pathex.experiments.runs.conformity import check_types
from pathex.files import write_json

if TYPE_CHECKING:
    from pathex.experiments.runs.folder import environment, finished_result, locked, read_config, to_csv
    from pathex.experiments.runs.inputs import check_same
    from pathex.experiments.runs.loading import Preprocessing, load_run, load_ticket, save_ticket
    from pathex.experiments.runs.runner import RunResult, run, settle_threads
    from pathex.experiments.runs.stages import TRAINED, task_at_start
    from pathex.experiments.runs.tickets import build_task, find_ticket, pruning_seed
    from pathex.experiments.runs.validation import check_config, check_ticket

__all__ = [
    "PLACE",
    "TRAINED",
    "WITHOUT_EFFECT",
    "PositiveInt",
    "Preprocessing",
    "RunConfig",
    "RunResult",
    "TicketConfig",
    "allowed_values",
    "build_task",
    "check_config",
    "check_same",
    "check_ticket",
    "check_types",
    "environment",
    "find_ticket",
    "finished_result",
    "load_run",
    "load_ticket",
    "locked",
    "pruning_seed",
    "read_config",
    "run",
    "run_name",
    "save_ticket",
    "settings",
    "settle_threads",
    "task_at_start",
    "to_csv",
    "write_json",
]

# The settings are needed to read a command line; torch is not.
_HOME = {
    **dict.fromkeys(("environment", "finished_result", "locked", "read_config", "to_csv"), "folder"),
    "check_same": "inputs",
    **dict.fromkeys(("Preprocessing", "load_run", "load_ticket", "save_ticket"), "loading"),
    **dict.fromkeys(("RunResult", "run", "settle_threads"), "runner"),
    **dict.fromkeys(("TRAINED", "task_at_start"), "stages"),
    **dict.fromkeys(("build_task", "find_ticket", "pruning_seed"), "tickets"),
    **dict.fromkeys(("check_config", "check_ticket"), "validation"),
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
