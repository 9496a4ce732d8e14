"""Processes: those that this one starts, those that work on one training, and those that score together."""

import importlib
from typing import TYPE_CHECKING, Any

from pathex.distributed.children import Child, cores, end_with_parent, stop

if TYPE_CHECKING:
    from pathex.distributed.collectives import ALONE, Group, Processes, in_one_piece, is_sharded, like, processes_of
    from pathex.distributed.launch import ProcessFailed, is_first_process, launched

__all__ = [
    "ALONE",
    "Child",
    "Group",
    "ProcessFailed",
    "Processes",
    "cores",
    "end_with_parent",
    "in_one_piece",
    "is_first_process",
    "is_sharded",
    "launched",
    "like",
    "processes_of",
    "stop",
]

_LAUNCH = ("ProcessFailed", "is_first_process", "launched")


def __getattr__(name: str) -> Any:
    # Later, so that a child process follows its parent before it imports torch, which takes seconds.
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{'launch' if name in _LAUNCH else 'collectives'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
