"""Threads that carry out a table of steps together."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np

from pathex.sparse import kernels
from pathex.sparse.kernels import ALIGNMENT


class Team:
    """Some threads, the caller's among them.

    Args:
        threads: How many.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.lock = Lock()  # two tables at once would wait for each other's threads
        self._pool = ThreadPoolExecutor(threads - 1, "pathex-sparse") if threads > 1 else None
        self._barrier = np.zeros(1, np.int64)
        self._scratch = np.zeros(0, np.uint8)

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
        submit = self._pool.submit if self._pool else None
        others = [submit(kernel, *arguments, part, self.threads, *more) for part in range(1, self.threads) if submit]
        kernel(*arguments, 0, self.threads, *more)
        for other in others:
            other.result()

    def scratch(self, size: int) -> int:
        """Address of so many bytes for each thread, for who holds the lock."""
        if len(self._scratch) < size * self.threads + ALIGNMENT:
            self._scratch = np.empty(size * self.threads + ALIGNMENT, np.uint8)
        address = int(self._scratch.ctypes.data)
        return address + -address % ALIGNMENT
