"""Many runs from one file, a few at a time, in processes of this machine or on a Ray cluster."""

import importlib
from typing import TYPE_CHECKING, Any

from pathex.experiments.sweep.config import EXECUTORS, SweepConfig

if TYPE_CHECKING:
    from pathex.experiments.sweep.planner import Plan, plan
    from pathex.experiments.sweep.sweeper import SweepResult, sweep
    from pathex.experiments.sweep.work import create

__all__ = ["EXECUTORS", "Plan", "SweepConfig", "SweepResult", "create", "plan", "sweep"]

# The options are needed to read a command line; torch is not.
_HOME = {"create": "work", "Plan": "planner", "plan": "planner", "SweepResult": "sweeper", "sweep": "sweeper"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
