"""Worker processes that read ahead."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from pathex.distributed import cores, end_with_parent
from pathex.errors import InvalidInput, PathexError

_T = TypeVar("_T")
_CHUNK = 64
_LEAST = 32
"""Images that are decoded in the time that a worker process takes to start."""


def default_workers() -> int:
    """Worker processes that read images: the cores that this process may use, shared with its siblings, at most 32."""
    siblings = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return min(32, max(1, cores() // (int(siblings) if siblings.isdigit() and int(siblings) else 1)))


def read_ahead(
    read: Callable[[Any], Any], batches: Sequence[Any], *, workers: int | None = None, pin_memory: bool = False
) -> Iterator[Any]:
    """Yield ``read(batch)`` of every batch in order, the next ones being read meanwhile by worker processes.

    The number of workers changes nothing in what is read; None is as many as `default_workers` says and the
    images are worth. Errors of pathex are raised here as they were raised there.
    """
    if workers is None:
        workers = min(default_workers(), sum(map(len, batches)) // _LEAST)
    if multiprocessing.current_process().daemon:  # it may not have children
        workers = 0
    loader: DataLoader[Any] = DataLoader(
        _Reader(read),
        batch_sampler=batches,
        num_workers=min(workers, len(batches)),
        collate_fn=_itself,
        pin_memory=pin_memory,
        worker_init_fn=_begin,
        generator=torch.Generator(),  # else each pass would move the global one
    )
    for content in loader:
        if isinstance(content, PathexError):
            raise content
        yield content


def chunks(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    """Numbers in pieces of one size, but for the last."""
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def attempt(read: Callable[[int], _T], number: int) -> _T | str:
    """What is read, or the line that says why it cannot be."""
    try:
        return read(number)
    except InvalidInput as error:
        return str(error)


def problems(read: Callable[[int], object], count: int) -> list[str]:
    """A line for each of ``count`` numbers that cannot be read."""
    found = read_ahead(partial(_problems, read), chunks(range(count), _CHUNK))
    return [line for lines in found for line in lines]


def _problems(read: Callable[[int], object], numbers: Sequence[int]) -> list[str]:
    return [line for number in numbers if isinstance(line := attempt(read, number), str)]


class _Reader(Dataset[Any]):
    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read

    def __getitems__(self, batch: Any) -> Any:
        try:
            return self._read(batch)
        except PathexError as error:  # raised here, a traceback of several lines would be added to its text
            return error


def _itself(content: Any) -> Any:
    return content


def _begin(worker: int) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    end_with_parent(parent.join)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the training decides what to do
