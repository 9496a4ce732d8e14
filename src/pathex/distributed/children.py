"""Child processes, heard over a pipe and ended with the process that started them, and the processors there are."""

import ctypes
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl


def cores() -> int:
    """How many processors this process may use, by its affinity and the quota of its container."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_bytes().split())
    except (OSError, ValueError):  # none
        return found
    return max(1, min(found, quota // period))


class Child:
    """A process that calls ``work(connection, *arguments)``; ``connection`` is the parent's end of a pipe to it.

    It is spawned, never forked, as a fork of a process with threads or CUDA may hang, with ``environment`` set before
    ``work`` is imported, and torch. Ctrl-C, which reaches every process of a terminal, is left to the parent. When the
    parent ends, however it ends, so does the child.
    """

    def __init__(
        self, work: Callable[..., object], *arguments: Any, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        call = pickle.dumps((work, arguments))
        self.process = context.Process(target=_main, args=(theirs, dict(environment), call), name="pathex")
        self.process.start()
        theirs.close()  # so that the pipe ends with the process

    def ending(self) -> str:
        """Wait for the end of the process, and say how it ended, to follow its name."""
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"ended with code {code}"
        name = signal.Signals(-code).name
        return f"was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"


def stop(children: Iterable[Child], patience: float = 0.0) -> None:
    """End processes: after so many seconds by SIGKILL, and if there are any, by SIGTERM first."""
    children = list(children)
    try:
        for child in children if patience else ():
            child.process.terminate()
        deadline = time.monotonic() + patience
        for child in children:
            child.process.join(max(0.0, deadline - time.monotonic()))
    finally:  # also after a second Ctrl-C
        for child in children:
            child.process.kill()
        for child in children:
            child.process.join()
            child.connection.close()


def _main(connection: Connection, environment: dict[str, str], call: bytes) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    work, arguments = pickle.loads(call)
    work(connection, *arguments)


def end_with_parent() -> None:
    """Let this process, which another one started by multiprocessing, end within seconds of that one."""
    if sys.platform == "linux":
        # By the kernel: an import, a long call in C or a handler of signals may keep every thread waiting.
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
