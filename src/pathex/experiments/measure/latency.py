"""Milliseconds of a network in several engines, measured in turns."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pathex.compaction import difference
from pathex.errors import PathexError, check_name, refusing
from pathex.experiments.measure.engines import DENSE, ENGINES, Engine, Subject, Unavailable
from pathex.graph import first_tensor

_TURN = 0.1
"""Seconds of one turn of an engine, at least."""


def latency(
    model: nn.Module,
    images: Tensor,
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    engines: Iterable[str] = tuple(ENGINES),
    rounds: int = 7,
    on_turn: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Milliseconds for one batch in each engine: medians of rounds in which every engine has its turn.

    Args:
        model: The network, float32 on the CPU, zeros where its mask removes.
        images: As many images as the largest batch has (N, C, H, W).
        batch_sizes: Images of a batch, one after the other.
        threads: Threads that each engine may use, one after the other.
        engines: Names in `ENGINES`.
        rounds: Turns of each engine, of a tenth of a second or one call.
        on_turn: Called after each turn.

    Returns:
        A row a batch size, number of threads and engine: ``engine``, ``batch_size``, ``threads``, ``milliseconds``
        (median), ``low`` and ``high`` (quartiles), ``difference`` (of its outputs from the network's own, relative to
        the largest), ``note`` (why there are no numbers).

    Raises:
        UnknownName: If there is no such engine.
    """
    names = list(engines)
    for name in names:
        check_name("engine", name, ENGINES)
    subject = Subject(model, images[:1])
    return [
        row
        for count in threads
        for size in batch_sizes
        for row in _rows(subject, images[:size], count, names, rounds, on_turn)
    ]


def _rows(
    subject: Subject, images: Tensor, threads: int, names: Sequence[str], rounds: int, on_turn: Callable[[], None]
) -> list[dict[str, Any]]:
    rows = {name: {"engine": name, "batch_size": len(images), "threads": threads, "note": ""} for name in names}
    ready: dict[str, tuple[Engine, int]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with threads_of_torch(threads):
        for name in names:
            try:
                ready[name] = _prepared(name, subject, images, threads)
            except PathexError as error:
                rows[name]["note"] = str(error)
                continue
            rows[name]["difference"] = _difference(ready[name][0], subject.model, images)
        for _ in range(rounds):
            for name, (engine, calls) in ready.items():
                seconds[name].append(_seconds(engine, images, calls))
                on_turn()
    for name, found in seconds.items():
        if found:
            low, middle, high = quartiles(found)
            rows[name] |= {"milliseconds": 1e3 * middle, "low": 1e3 * low, "high": 1e3 * high}
    return list(rows.values())


def _prepared(name: str, subject: Subject, images: Tensor, threads: int) -> tuple[Engine, int]:
    """An engine that has warmed up, and how many of its calls fill a turn."""
    with refusing("{}", raising=Unavailable):  # of any kind: most engines are not ours
        engine = ENGINES[name](subject, images, threads)
        seconds = min(_seconds(engine, images, 1) for _ in range(3))
    return engine, max(1, round(_TURN / max(seconds, 1e-6)))


@torch.inference_mode()
def _difference(engine: Engine, model: nn.Module, images: Tensor) -> float:
    """The largest difference of outputs from the network's own, relative to its largest output; two digits."""
    return float(f"{difference(engine(images), first_tensor(model(images)), small=1e-30):.1e}")


@torch.inference_mode()
def _seconds(engine: Engine, images: Tensor, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        engine(images)
    return (time.perf_counter() - start) / calls


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of a single number three times that number."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def fastest_dense(rows: Iterable[Mapping[str, Any]], row: Mapping[str, Any]) -> float:
    """Milliseconds of the fastest of `DENSE` for the batch and threads of one of the rows of `latency`."""
    case = row["batch_size"], row["threads"]
    own = (each for each in rows if (each["batch_size"], each["threads"]) == case)
    return min(float(each["milliseconds"]) for each in own if each["engine"] in DENSE and "milliseconds" in each)


@contextmanager
def threads_of_torch(number: int) -> Iterator[None]:
    """Torch has so many threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
