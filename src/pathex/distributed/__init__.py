"""Processes: those that this one starts, and several that work on one training."""

from pathex.distributed.children import Child, stop
from pathex.distributed.launching import ProcessFailed, is_first_process, launched

__all__ = ["Child", "ProcessFailed", "is_first_process", "launched", "stop"]
