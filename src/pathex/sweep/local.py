"""Runs in processes of this machine."""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import tempfile
import time
from collections import deque
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pathex.sweep.executors import Executor, Share
from pathex.sweep.work import ENDED, Job, Message, carry_out, ended

__all__ = ["LocalExecutor"]

_SECONDS_TO_STOP = 10.0
_MOST_OUTPUT = 4000


class LocalExecutor(Executor):
    """Worker processes that carry out one run after the other.

    They are spawned, never forked: a fork of a process that has threads may hang. Each has a pipe of its own, so that
    one that is killed cannot hold up the others. A worker that is lost takes one run with it, and is replaced.

    Args:
        share: How the runs share this machine.
    """

    def __init__(self, share: Share) -> None:
        self.threads = share.threads
        self._share = share
        self._waiting: deque[Job] = deque()
        self._workers: list[_Worker | None] = [None] * share.workers
        self._outputs = tempfile.TemporaryDirectory(prefix="pathex-sweep-")

    def submit(self, job: Job) -> None:
        """Take a job; it starts when a worker is free."""
        self._waiting.append(job)

    def listen(self, seconds: float) -> list[Message]:
        """What was heard of the workers since the last call.

        Args:
            seconds: How long to wait for the first message.

        Returns:
            Messages, in order for each job.
        """
        self._fill()
        busy = {worker.connection: worker for worker in self._workers if worker is not None and worker.job is not None}
        if not busy:
            time.sleep(seconds)
            return []
        return [message for ready in wait(list(busy), seconds) for message in busy[ready].read()]  # type: ignore[index]

    def close(self) -> None:
        """Stop all workers: first ask, then kill those that do not listen."""
        workers = [worker for worker in self._workers if worker is not None]
        self._workers = []
        try:
            for worker in workers:
                worker.process.terminate()
            deadline = time.monotonic() + _SECONDS_TO_STOP
            for worker in workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:  # also after a second Ctrl-C
            for worker in workers:
                worker.process.kill()
            for worker in workers:
                worker.process.join()
                worker.connection.close()
            self._outputs.cleanup()

    def _fill(self) -> None:
        for slot, worker in enumerate(self._workers):
            if not self._waiting:
                return
            if worker is not None and worker.job is not None:
                continue
            free = self._start(slot) if worker is None or worker.gone else worker
            self._workers[slot] = free
            free.give(self._waiting.popleft())

    def _start(self, slot: int) -> "_Worker":
        device = _visible(slot % self._share.gpus) if self._share.gpus else None
        return _Worker(Path(self._outputs.name) / f"{slot}.txt", device)


class _Worker:
    """One process, seen from the sweep."""

    def __init__(self, output: Path, device: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, str(output), device), name="pathex-sweep")
        self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.job: Job | None = None
        self.gone = False
        self._output = output

    def give(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(OSError):  # a process that is gone already is heard of when its pipe is read
            self.connection.send(job)

    def read(self) -> list[Message]:
        messages: list[Message] = []
        try:
            while self.job is not None and self.connection.poll():
                message = Message(*self.connection.recv())
                messages.append(message)
                if message.kind == ENDED:
                    self.job = None
        except (EOFError, OSError):
            name = self.job.name if self.job else ""
            messages.append(Message(name, ENDED, self._lost()))
            self.job, self.gone = None, True
        return messages

    def _lost(self) -> dict[str, Any]:
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            error = f"the process of the run ended with code {code}"
        else:
            error = f"the process of the run was ended by {signal.Signals(-code).name}"
            error += " (out of memory?)" if signal.Signals(-code).name == "SIGKILL" else ""
        output = self._output.read_text(encoding="utf-8", errors="replace") if self._output.exists() else ""
        return ended("lost", error, output[-_MOST_OUTPUT:])


def _visible(index: int) -> str:
    """What ``CUDA_VISIBLE_DEVICES`` must be for a process that sees one of the devices that this process sees."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[index].strip() if named else str(index)


def _serve(connection: Connection, output: str, device: str | None) -> None:
    """The worker's own side: jobs come in, messages go out, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the sweep says what to do
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    _write_to(output)
    # A worker that is asked to stop, or whose sweep is gone, ends without a word.
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        while True:
            job: Job = connection.recv()
            os.ftruncate(2, 0)
            send = partial(_tell, connection, job.name)
            send(ENDED, carry_out(job, send))
    # At once: nothing is left to tidy up, and an interrupted backward pass can hold up the end of the interpreter.
    os._exit(0)


def _tell(connection: Connection, name: str, kind: str, payload: dict[str, Any]) -> None:
    try:
        connection.send((name, kind, payload))
    except OSError:
        raise KeyboardInterrupt from None  # the sweep is gone: stop as if it had said so


def _write_to(output: str) -> None:
    """Send what this process prints to a file, crashes included: the terminal belongs to the sweep."""
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    faulthandler.enable(2)
