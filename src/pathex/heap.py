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

_lock = threading.Lock()
_inside: list[int] = []  # threads


@contextmanager
def keeps_freed_memory() -> Iterator[None]:
    """Memory that is freed inside is used again, and goes back to the system at the end.

    By default glibc gives the tensors of each pass back as soon as they are freed, and the next pass waits for the
    system to clear every page anew: a tenth to a quarter of a round of a small network. Blocks of at most 32 MiB are
    kept, 1 GiB in all. Other C libraries are left alone.

    Yields:
        Nothing.
    """
    library = _glibc()
    if library is None:
        yield
        return
    with _lock:
        _inside.append(threading.get_ident())
        library.mallopt(_MMAP_THRESHOLD, _AS_GROWN[_MMAP_THRESHOLD])
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        with _lock:
            _inside.remove(threading.get_ident())
            if not _inside:  # no other thread prunes
                library.mallopt(_TRIM_THRESHOLD, _AS_GROWN[_TRIM_THRESHOLD])
                library.malloc_trim(0)


@cache
def _glibc() -> Any:
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
