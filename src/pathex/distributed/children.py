"""Child processes, heard over a pipe and ended with the process that started them, and the processors there are."""

import contextlib
import ctypes
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from multiprocessing import spawn
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
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
    parent ends, however it ends and however early, so does the child, without a word.

    Raises:
        RuntimeError: A script that starts processes does so while one of them imports it.
    """

    def __init__(
        self, work: Callable[..., object], *arguments: Any, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        if _preparing.is_set():
            raise RuntimeError("the script that starts processes must do so under: if __name__ == '__main__':")
        # `multiprocessing` imports the script of a child as here; its own children end with a traceback where their
        # parent is gone before it told them what to do.
        preparation = spawn.get_preparation_data("pathex")
        del preparation["authkey"]  # which may not travel so; the child makes its own
        call = preparation, pickle.dumps((work, arguments))
        self.connection, theirs = Pipe()
        number = theirs.fileno()
        path = list(map(str, sys.path))
        code = f"import sys; sys.path[:] = {path!r}; from {__name__} import _main; _main({number}, {os.getpid()})"
        # The process has it from its first moment.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            how: dict[str, Any] = {"env": {**os.environ, **environment}, "pass_fds": (number,)}
            self.process = Popen([sys.executable, "-c", code], stdin=DEVNULL, **how)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that the pipe ends with the process
        with contextlib.suppress(OSError):  # a process that is gone already is heard of when its pipe is read
            self.connection.send(call)

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code, minus the signal that ended it; None if the process has not ended in so many seconds."""
        with contextlib.suppress(TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def ending(self) -> str:
        """Wait for the end of the process, and say how it ended, to follow its name."""
        code = self.wait() or 0
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
            child.wait(max(0.0, deadline - time.monotonic()))
    finally:  # also after a second Ctrl-C
        for child in children:
            child.process.kill()
        for child in children:
            child.wait()
            child.connection.close()


_preparing = threading.Event()  # in a child, while it imports the script that started it


def _main(number: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with_parent(partial(_wait_for, parent))
    connection = Connection(number)
    try:
        preparation, call = connection.recv()
    except EOFError:
        return
    _preparing.set()
    spawn.prepare(preparation)
    work, arguments = pickle.loads(call)
    _preparing.clear()
    work(connection, *arguments)


def _wait_for(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)


def end_with_parent(wait: Callable[[], object]) -> None:
    """Let this process end within seconds of the one that started it, for whose end ``wait`` waits."""
    if sys.platform == "linux":
        # By the kernel: an import, a long call in C or a handler of signals may keep every thread waiting.
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    threading.Thread(target=_follow, args=(wait,), daemon=True).start()


def _follow(wait: Callable[[], object]) -> None:
    wait()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
