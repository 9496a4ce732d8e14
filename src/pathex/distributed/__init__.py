"""Processes: those that this one starts, those that work on one training, and those that score together."""

from pathex.distributed.children import Child, ProcessFailed, is_first_process, launched, stop
from pathex.distributed.collectives import ALONE, Group, Processes, in_one_piece, is_sharded, like, processes_of

__all__ = [
    "ALONE",
    "Child",
    "Group",
    "ProcessFailed",
    "Processes",
    "in_one_piece",
    "is_first_process",
    "is_sharded",
    "launched",
    "like",
    "processes_of",
    "stop",
]
