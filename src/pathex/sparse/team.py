"""Threads that carry out a kernel together."""

import weakref
from collections.abc import Callable
from threading import RLock, Semaphore, Thread
from typing import Any

import numpy as np

from pathex.sparse import kernels
from pathex.sparse.kernels import ALIGNMENT, wait

_TURNS = 50000  # of looking for the next kernel before a thread sleeps: a millisecond


class Team:
    """Some threads, the caller's among them.

    Args:
        threads: How many.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.lock = RLock()  # two kernels at once would wait for each other's threads
        self._others = [_Other() for _ in range(1, threads)]
        self._barrier = np.zeros(1, np.int64)
        self._scratch = np.zeros(0, np.uint8)
        for other in self._others:
            thread = Thread(target=other.serve, name="pathex-sparse", daemon=True)
            thread.start()
            weakref.finalize(self, _end, other, thread)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies have threads of their own."""
        return Team, (self.threads,)

    def run(self, table: Any, first: int, last: int) -> None:
        """Steps of a table, each when all threads have done the one before."""
        with self.lock:
            self._barrier[0] = 0
            self.share(kernels.run, table, first, last, more=(self._barrier.ctypes.data,))

    def share(self, kernel: Callable[..., None], *arguments: Any, more: tuple[Any, ...] = ()) -> None:
        """A kernel in as many parts as there are threads."""
        with self.lock:
            for part, other in enumerate(self._others, 1):
                other.post(kernel, *arguments, part, self.threads, *more)
            try:
                kernel(*arguments, 0, self.threads, *more)
            finally:
                for other in self._others:
                    other.join()

    def scratch(self, size: int) -> int:
        """Address of so many bytes for each thread, for who holds the lock."""
        if len(self._scratch) < size * self.threads + ALIGNMENT:
            self._scratch = np.empty(size * self.threads + ALIGNMENT, np.uint8)
        address = int(self._scratch.ctypes.data)
        return address + -address % ALIGNMENT


def _end(other: "_Other", thread: Thread) -> None:
    """End a thread before the interpreter does, which would abort the process."""
    other.post(None)
    thread.join()


class _Other:
    """Another thread, which looks out for its next kernel for a while before it sleeps: to be woken takes longer."""

    def __init__(self) -> None:
        self._counts = np.zeros(2, np.int64)  # posted, done
        self._posted, self._done = self._counts[:1], self._counts[1:]
        self._work: tuple[Any, ...] = ()
        self._bell, self._sleeps = Semaphore(0), False
        self._error: BaseException | None = None

    def post(self, *work: Any) -> None:
        self._work = work
        self._posted[0] += 1
        if self._sleeps:
            self._bell.release()

    def join(self) -> None:
        while not wait(self._done.ctypes.data, self._posted[0], _TURNS):
            pass
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def serve(self) -> None:
        done = 0
        while True:
            if not wait(self._posted.ctypes.data, done + 1, _TURNS):
                self._sleeps = True
                while self._posted[0] == done:
                    self._bell.acquire()
                self._sleeps = False
            kernel, *arguments = self._work
            if kernel is None:
                return
            try:
                kernel(*arguments)
            except BaseException as error:  # for the thread that waits
                self._error = error
            done += 1
            self._done[0] = done
