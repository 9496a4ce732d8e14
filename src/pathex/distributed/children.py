"""Child processes: told what they are when they start, heard over a pipe, ended with the process that started them."""

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any


class Child:
    """A process that calls ``work(connection, *arguments)``; ``connection`` is the parent's end of a pipe to it.

    It is spawned, never forked, as a fork of a process with threads or CUDA may hang, with ``environment`` set before
    ``work`` is imported (torch is there already). Ctrl-C, which reaches every process of a terminal, is left to the
    parent. When the parent ends, however it ends, the child gets SIGTERM.
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
    threading.Thread(target=_follow, daemon=True).start()
    work, arguments = pickle.loads(call)
    work(connection, *arguments)


def _follow() -> None:
    """End with the parent."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
