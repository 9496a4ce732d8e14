"""The processes of one training."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from pathex.distributed.children import Child, stop
from pathex.errors import PathexError

_HOST = "127.0.0.1"
_PATIENCE = 10.0  # seconds in which another process tells why it failed, or ends by itself
_LONGEST = 2000


class ProcessFailed(PathexError, RuntimeError):
    """Another process of the same run stopped with an error."""


@contextmanager
def launched(devices: int, work: Callable[..., object], *arguments: Any) -> Iterator[None]:
    """Carry out a block as the first of several processes, which end with it; the others call ``work(*arguments)``."""
    # They form the default group of torch.distributed, and say nothing: an error of theirs is a `ProcessFailed` here.
    # Where others were started already, as for 0 and 1 devices, there is nothing to start.
    if devices < 2 or dist.is_initialized() or "LOCAL_RANK" in os.environ:
        with _group():
            if dist.is_torchelastic_launched() and not dist.is_initialized():
                _join()
            yield
        return
    before = torch.get_num_threads()
    threads = before if "OMP_NUM_THREADS" in os.environ else max(1, before // devices)
    store = dist.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    children = []
    for rank in range(1, devices):
        environment = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(devices)}
        children.append(Child(_take_part, rank, devices, store.port, threads, work, arguments, environment=environment))
    torch.set_num_threads(threads)
    try:
        with _group():
            _await(store, children)
            _join(store=store, rank=0, world_size=devices)
            yield
        for child in children:
            child.wait(_PATIENCE)
    except RuntimeError as error:
        # A broken connection is a RuntimeError; the reason is in the process at its other end.
        if isinstance(error, PathexError) or (reason := _failure(children, _PATIENCE)) is None:
            raise
        raise ProcessFailed(reason) from error
    finally:
        stop(children)
        torch.set_num_threads(before)


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints, of those that work on one run."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def _await(store: dist.TCPStore, children: Sequence[Child]) -> None:
    """Wait until all are there, but for none that ended."""
    while store.add("there", 0) < len(children):
        if (reason := _failure(children)) is not None:
            raise ProcessFailed(reason)
        time.sleep(0.02)


def _failure(children: Sequence[Child], patience: float = 0.0) -> str | None:
    """What went wrong in one of the processes, as a line; None if nothing did for a while."""
    limit = time.monotonic() + patience
    while True:
        for number, child in enumerate(children, 2):
            if child.wait(0):
                return f"process {number} of {len(children) + 1}: {_reason(child)}"
        if time.monotonic() >= limit:
            return None
        time.sleep(0.05)


def _reason(child: Child) -> str:
    try:
        return str(child.connection.recv())
    except (EOFError, OSError):
        return f"it {child.ending()}"


def _take_part(
    connection: Connection,
    rank: int,
    devices: int,
    port: int,
    threads: int,
    work: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    store = dist.TCPStore(_HOST, port, is_master=False)
    store.add("there", 1)
    _join(store=store, rank=rank, world_size=devices)
    try:
        work(*arguments)
    except Exception as error:
        said = str(error) if isinstance(error, PathexError) else f"{type(error).__name__}: {error}"
        connection.send(said[:_LONGEST])
        if not isinstance(error, PathexError):
            raise
        sys.exit(2)


def _join(**place: Any) -> None:
    # Its functions have the default group of the moment of import as a default argument: imported later, they would
    # hold a group that was left, whose threads abort a process that ends.
    import torch.distributed.nn  # noqa: F401

    dist.init_process_group(**place)


@contextmanager
def _group() -> Iterator[None]:
    """Leave the process group that the block made, however it ends: a later run must not wait for it."""
    there = dist.is_initialized()
    try:
        yield
    finally:
        if dist.is_initialized() and not there:
            dist.destroy_process_group()
