"""Runs in processes of this machine."""

import contextlib
import faulthandler
import os
import signal
import tempfile
import time
from collections import deque
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pathex.distributed import Child, stop
from pathex.experiments.sweep.work import ENDED, Executor, Job, Message, Share, carry_out, ended
from pathex.files import appending

_SECONDS_TO_STOP = 10.0
_MOST_OUTPUT = 4000


class LocalExecutor(Executor):
    """Worker processes that carry out one run after the other."""

    def __init__(self, share: Share) -> None:
        self.threads = share.threads
        self._share = share
        self._waiting: deque[Job] = deque()
        self._workers: dict[int, _Worker] = {}
        self._outputs = tempfile.TemporaryDirectory(prefix="pathex-sweep-")

    def submit(self, job: Job) -> None:
        """Take a job; it starts when a worker is free."""
        self._waiting.append(job)

    def listen(self, seconds: float) -> list[Message]:
        """What was heard of the workers since the last call."""
        for slot in range(self._share.workers):
            worker = self._workers.get(slot)
            if self._waiting and (worker is None or worker.job is None):
                if worker is None or worker.gone:
                    worker = self._workers[slot] = _Worker(slot, Path(self._outputs.name), self._share.gpus)
                worker.give(self._waiting.popleft())
        busy = {worker.child.connection: worker for worker in self._workers.values() if worker.job is not None}
        if not busy:
            time.sleep(seconds)
            return []
        return [message for ready in wait(list(busy), seconds) for message in busy[ready].read()]  # type: ignore[index]

    def close(self) -> None:
        """Stop all workers."""
        workers, self._workers = self._workers, {}
        try:
            stop([worker.child for worker in workers.values()], _SECONDS_TO_STOP)
        finally:
            self._outputs.cleanup()


class _Worker:
    """One process, seen from the sweep."""

    def __init__(self, slot: int, outputs: Path, gpus: int) -> None:
        self._output = outputs / f"{slot}.txt"
        environment = {"CUDA_VISIBLE_DEVICES": _visible(slot % gpus)} if gpus else {}
        self.child = Child(_serve, str(self._output), environment=environment)
        self.job: Job | None = None
        self.gone = False

    def give(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(OSError):  # a process that is gone already is heard of when its pipe is read
            self.child.connection.send(job)

    def read(self) -> list[Message]:
        messages: list[Message] = []
        try:
            while self.job is not None and self.child.connection.poll():
                messages.append(Message(*self.child.connection.recv()))
                if messages[-1].kind == ENDED:
                    self.job = None
        except (EOFError, OSError):
            assert self.job is not None
            error = f"the process of the run {self.child.ending()}"
            output = self._output.read_text(encoding="utf-8", errors="replace") if self._output.exists() else ""
            messages.append(Message(self.job.name, ENDED, ended("lost", error, output[-_MOST_OUTPUT:])))
            self.job, self.gone = None, True
        return messages


def _visible(index: int) -> str:
    """What ``CUDA_VISIBLE_DEVICES`` must be for a process that sees one of the devices that this process sees."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[index].strip() if named else str(index)


def _serve(connection: Connection, output: str) -> None:
    """The worker's own side: jobs come in, messages go out, until the pipe ends."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # What this process prints goes to a file, crashes included: the terminal belongs to the sweep.
    with appending(Path(output)) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    faulthandler.enable(2)
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
