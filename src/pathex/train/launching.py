"""Further processes for a run on several devices, where ``torchrun`` or ``fabric run`` started none."""

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any

import torch

from pathex.errors import PathexError

__all__ = ["ProcessFailed", "launched"]

_PATIENCE = 10.0
"""Seconds in which a process notices by itself that another one failed."""

_LONGEST = 2000
_FAILED = 2


class ProcessFailed(PathexError, RuntimeError):
    """Another process of the same run stopped with an error."""


@contextmanager
def launched(devices: int, work: Callable[..., object], *arguments: Any) -> Iterator[None]:
    """Carry out a block as the first of several processes; the others call a function that takes their part.

    They say nothing: events and warnings would be those of the first, and their errors become its own. However the
    block ends, they end too.

    Args:
        devices: Number of processes. For 0 and 1, and where ``torchrun`` or ``fabric run`` started some or this is one
            of the others, there is nothing to start.
        work: A function of a module, called in the others.
        *arguments: Its arguments; they are pickled.

    Yields:
        Nothing.

    Raises:
        ProcessFailed: If another process fails.
    """
    if devices < 2 or "LOCAL_RANK" in os.environ:
        with _group():
            yield
        return
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "LOCAL_WORLD_SIZE": str(devices)}
    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else max(1, torch.get_num_threads() // devices)
    others = _Others(devices, place, threads, work, arguments)
    before, own_threads = dict(os.environ), torch.get_num_threads()
    os.environ.update(place, LOCAL_RANK="0")
    torch.set_num_threads(threads)
    try:
        with _group():
            others.start()
            yield
        others.finish()
    except Exception as error:
        # A broken connection is a RuntimeError; the reason is in the process at its other end.
        suspicious = isinstance(error, RuntimeError) and not isinstance(error, PathexError)
        if not suspicious or not (reason := others.failure(_PATIENCE)):
            raise
        raise ProcessFailed(reason) from error
    finally:
        others.stop()
        torch.set_num_threads(own_threads)
        os.environ.clear()
        os.environ.update(before)


class _Others:
    """The further processes, and what became of them."""

    def __init__(
        self, devices: int, place: dict[str, str], threads: int, work: Callable[..., object], arguments: tuple[Any, ...]
    ) -> None:
        # Started as new programs: a fork would copy threads and CUDA in a state of their own.
        context = get_context("spawn")
        self._processes, self._ends = [], []
        for rank in range(1, devices):
            end, theirs = context.Pipe(duplex=False)
            given = (theirs, {**place, "LOCAL_RANK": str(rank)}, threads, work, arguments)
            self._processes.append(context.Process(target=_take_part, args=given, daemon=True))
            self._ends.append(end)
        self._told: dict[int, str] = {}
        self._over = threading.Event()

    def start(self) -> None:
        for process in self._processes:
            process.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def failure(self, patience: float = 0.0) -> str | None:
        """What went wrong in one of the processes, as a line; None if nothing did for a while."""
        limit = time.monotonic() + patience
        while True:
            for rank, (process, end) in enumerate(zip(self._processes, self._ends, strict=True), 1):
                if not process.is_alive() and process.exitcode:
                    told = self._told.setdefault(rank, _received(end) or f"it ended with exit code {process.exitcode}")
                    return f"process {rank + 1} of {len(self._processes) + 1}: {told}"
            if time.monotonic() >= limit:
                return None
            time.sleep(0.05)

    def finish(self) -> None:
        """Wait for the others to end by themselves."""
        for process in self._processes:
            process.join(_PATIENCE)

    def stop(self) -> None:
        self._over.set()
        for process in self._processes:
            if process.is_alive():
                process.kill()  # a process that waits for others does not hear a gentler signal
            process.join()

    def _watch(self) -> None:
        """End this process where it waits without end for one that failed."""
        alive = [process.sentinel for process in self._processes]
        while alive and not self._over.is_set():
            for ended in wait(alive, timeout=1.0):
                alive.remove(ended)  # type: ignore[arg-type]
            if (reason := self.failure()) is not None and not self._over.wait(_PATIENCE):
                sys.stderr.write(f"pathex: error: {reason}\n")
                sys.stderr.flush()
                self.stop()
                os._exit(_FAILED)


def _received(end: Any) -> str | None:
    try:
        return str(end.recv()) if end.poll() else None
    except EOFError:
        return None


def _take_part(
    end: Any, place: dict[str, str], threads: int, work: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    """What each of the further processes does."""
    # Ctrl-C reaches all: the first process says so, and hears of it at once where it waits for one that is gone.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    os.environ.update(place)
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    try:
        work(*arguments)
    except PathexError as error:
        end.send(str(error))
        sys.exit(_FAILED)
    except Exception as error:
        end.send(f"{type(error).__name__}: {error}"[:_LONGEST])
        raise


def _follow(first: int) -> None:
    """End with the first process, however it ended."""
    while os.getppid() == first:
        time.sleep(1.0)
    os._exit(1)


@contextmanager
def _group() -> Iterator[None]:
    """Leave the process group that the block made, however it ends: a later run must not wait for it."""
    there = torch.distributed.is_initialized()
    try:
        yield
    finally:
        if torch.distributed.is_initialized() and not there:
            torch.distributed.destroy_process_group()


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
