"""A case in a fresh process, so that no case finds what another one left behind."""

import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from pathex.errors import PathexError, PathexWarning

__all__ = ["CaseFailed", "Fresh"]

_PATIENCE = 10.0
_LONGEST = 300


class CaseFailed(PathexError):
    """A case whose process ended with an error; the message is its last line."""


@dataclass(frozen=True)
class _Failure:
    reason: str


class Fresh:
    """A process that works on one case and talks over a pipe.

    Args:
        work: What it does, a function of a module: it gets its end of the pipe and ``args``.
        args: What else it gets.
        threads: Threads of PyTorch.
    """

    def __init__(self, work: Callable[..., None], *args: Any, threads: int) -> None:
        # Spawned, never forked: a fork of a process that has threads may hang.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, args, threads), daemon=True)
        self._process.start()
        theirs.close()  # a dead process then reads as the end of its pipe

    def send(self, message: object) -> None:
        """Say something to the process; one that has ended does not hear it.

        Args:
            message: Anything that can be pickled.
        """
        try:
            self._pipe.send(message)
        except OSError:
            return  # what became of it, `receive` tells

    def receive(self) -> Any:
        """Wait for a word of the process.

        Returns:
            What it sent.

        Raises:
            CaseFailed: If it ended with an error or was killed.
        """
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(_PATIENCE)
            raise CaseFailed(f"its process ended with exit code {self._process.exitcode}") from None
        if isinstance(message, _Failure):
            raise CaseFailed(message.reason)
        return message

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.terminate()
        self._process.join(_PATIENCE)
        self._pipe.close()


def _serve(pipe: Connection, work: Callable[..., None], args: tuple[Any, ...], threads: int) -> None:
    """The life of the process."""
    # Ctrl-C reaches every process of a terminal; the one that waits for this one decides what follows from it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["KINETO_LOG_LEVEL"] = "99"  # or every use of the profiler would write lines to standard error
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", PathexWarning)
    try:
        work(pipe, *args)
    except Exception as error:
        if not isinstance(error, PathexError):
            traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        pipe.send(_Failure(reason[:_LONGEST]))
