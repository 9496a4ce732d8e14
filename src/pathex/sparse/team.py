"""Threads that carry out a table of steps together."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np

from pathex.sparse import kernels


class Team:
    """Some threads, the caller's among them.

    Args:
        threads: How many.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._lock = Lock()  # two tables at once would wait for each other's threads
        self._pool = ThreadPoolExecutor(threads - 1, "pathex-sparse") if threads > 1 else None
        self._barrier = np.zeros(1, np.int64)

    def run(self, table: Any, first: int, last: int) -> None:
        """Steps of a table, each when all threads have done the one before."""
        if self._pool is None:
            kernels.run(table, first, last, 0, 1, 0)
            return
        with self._lock:
            self._barrier[0] = 0
            shared = self.threads, self._barrier.ctypes.data
            others = [
                self._pool.submit(kernels.run, table, first, last, part, *shared) for part in range(1, self.threads)
            ]
            kernels.run(table, first, last, 0, *shared)
            for other in others:
                other.result()
