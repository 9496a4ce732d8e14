"""The C library's memory between the passes of a prune."""

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["keeps_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_MIB = 2**20
# What glibc comes to by itself in a process that has freed a block of 32 MiB (mallopt(3), M_MMAP_THRESHOLD).
_AS_GROWN = {_MMAP_THRESHOLD: 32 * _MIB, _TRIM_THRESHOLD: 64 * _MIB}
_KEPT = 1024 * _MIB
# Under a budget no more than these shares of it: blocks between others leave gaps that no later block fits.
_BLOCK, _FREE = 256, 8

_lock = threading.Lock()
_inside: list[int] = []  # threads


@contextmanager
def keeps_freed_memory(budget: int | None = None) -> Iterator[None]:
    """Memory that is freed inside is used again, and goes back to the system at the end.

    By default glibc gives the tensors of each pass back as soon as they are freed, and the next pass waits for the
    system to clear every page anew: a tenth to a quarter of a round of a small network. Blocks of at most 32 MiB are
    kept, 1 GiB in all. Other C libraries are left alone.

    Args:
        budget: Most bytes of all tensors: blocks of at most one part in 256 (but 1 MiB) are kept, and one part
            in 8 in all, which costs time where tensors are larger. None: no bound. Of several threads the last one to
            come decides.

    Yields:
        Nothing.
    """
    library = _glibc()
    if library is None:
        yield
        return
    with _lock:
        _inside.append(threading.get_ident())
        block, free = _AS_GROWN[_MMAP_THRESHOLD], _KEPT
        if budget is not None:
            block, free = min(block, max(_MIB, budget // _BLOCK)), min(free, max(_MIB, budget // _FREE))
        library.mallopt(_MMAP_THRESHOLD, block)
        library.mallopt(_TRIM_THRESHOLD, free)
    try:
        yield
    finally:
        with _lock:
            _inside.remove(threading.get_ident())
            if not _inside:  # no other thread prunes
                for parameter, value in _AS_GROWN.items():
                    library.mallopt(parameter, value)
                library.malloc_trim(0)


@cache
def _glibc() -> Any:
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
