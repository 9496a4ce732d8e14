"""Many runs from one file, a few at a time, in processes of this machine or on a Ray cluster."""

import importlib
from typing import TYPE_CHECKING, Any

from pathex.sweep.config import EXECUTORS, SweepConfig

if TYPE_CHECKING:
    from pathex.sweep.planning import Plan, plan
    from pathex.sweep.progress import Progress
    from pathex.sweep.sweeping import SweepResult, sweep

__all__ = ["EXECUTORS", "Plan", "Progress", "SweepConfig", "SweepResult", "plan", "sweep"]

# The options are needed to read a command line; torch is not.
_HOME = {"Plan": "planning", "plan": "planning", "Progress": "progress", "SweepResult": "sweeping", "sweep": "sweeping"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"pathex.sweep.{_HOME[name]}"), name)
    raise AttributeError(f"module 'pathex.sweep' has no attribute {name!r}")
