"""Threads of one process that take turns, each with the process-wide state that it would have alone."""

import threading
import warnings
from collections import deque
from types import TracebackType
from typing import Any

import torch

from pathex.train.seeding import host_generators, set_host_generators

__all__ = ["State", "Turn", "Turns"]


class Turns:
    """Lets one thread at a time go on; the others wait in the order in which they came.

    Args:
        gpu: Number of the GPU whose generator counts; None without one.
    """

    def __init__(self, gpu: int | None = None) -> None:
        self.gpu = gpu
        self.outside = State(gpu)
        self.outside.keep()
        self.stopped = False
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def take(self) -> None:
        """Wait for the turn."""
        mine = threading.Lock()
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()  # until the one before lets go of it

    def give(self) -> None:
        """Hand the turn on to the one who waits longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False

    @property
    def wanted(self) -> bool:
        """Whether another thread waits."""
        return bool(self._waiting)

    def stop(self) -> None:
        """Interrupt all: each ends by a ``KeyboardInterrupt`` where it would hand on its turn or receives it."""
        self.stopped = True

    def check(self) -> None:
        """Interrupt the thread that calls this, if all are to stop.

        Raises:
            KeyboardInterrupt: If they are.
        """
        if self.stopped:
            raise KeyboardInterrupt


class Turn:
    """The turns of one thread. A context manager: the block begins when the first turn comes.

    Args:
        turns: Shared by all threads.

    Raises:
        KeyboardInterrupt: In the block, where all are to stop.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._own = State(turns.gpu)

    def __enter__(self) -> "Turn":
        self._turns.take()
        try:
            self._turns.check()
            self._turns.outside.put()  # each begins with what was there before all of them
            self._own.begin()
        except BaseException:
            self._turns.give()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.outside.put()
        self._turns.give()

    def on_step_end(self) -> None:
        """Let every other thread that waits have a turn."""
        self._turns.check()
        if not self._turns.wanted:
            return
        self._own.keep()
        self._turns.give()
        self._turns.take()
        self._own.put()
        self._turns.check()


class State:
    """What a process has once and each run uses as its own: random generators, and what becomes of warnings.

    Streams, gradient modes and numbers of threads belong to each thread anyway.

    Args:
        gpu: Number of the GPU whose generator counts; None without one.
    """

    def __init__(self, gpu: int | None) -> None:
        self._gpu = gpu
        self._kept: tuple[Any, ...] = ()

    def keep(self) -> None:
        """Take down what is there now."""
        self._kept = (
            host_generators(),
            (warnings.filters, warnings.showwarning, warnings._showwarnmsg_impl),  # type: ignore[attr-defined]
            None if self._gpu is None else torch.cuda.default_generators[self._gpu].graphsafe_get_state(),
        )

    def put(self) -> None:
        """Put back what was taken down."""
        host, told, device = self._kept
        set_host_generators(host)
        warnings.filters, warnings.showwarning, warnings._showwarnmsg_impl = told  # type: ignore[attr-defined]
        warnings._filters_mutated()  # type: ignore[attr-defined]
        if self._gpu is not None:
            torch.cuda.default_generators[self._gpu].graphsafe_set_state(device)

    def begin(self) -> None:
        """Begin with what is there, and from here on apart from it."""
        if self._gpu is not None:
            # A state of its own, not only other numbers in the common one: captured graphs that run side by side read
            # their random numbers' place from the state that they were captured with.
            shared = torch.cuda.default_generators[self._gpu]
            own = torch.Generator(shared.device)
            own.set_state(shared.get_state())
            shared.graphsafe_set_state(own.graphsafe_get_state())
        self.keep()
