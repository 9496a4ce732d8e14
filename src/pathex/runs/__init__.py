"""One run: prune, train, evaluate, in a folder that can be resumed."""

import importlib
from typing import TYPE_CHECKING, Any

from pathex.runs.config import RunConfig

if TYPE_CHECKING:
    from pathex.runs.naming import run_name
    from pathex.runs.running import RunResult, run
    from pathex.runs.validation import check_config

__all__ = ["RunConfig", "RunResult", "check_config", "run", "run_name"]

# The settings are needed to read a command line; torch is not.
_HOME = {"run_name": "naming", "RunResult": "running", "run": "running", "check_config": "validation"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"pathex.runs.{_HOME[name]}"), name)
    raise AttributeError(f"module 'pathex.runs' has no attribute {name!r}")
