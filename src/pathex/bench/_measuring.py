"""Clocks and peaks of memory, the same for all suites."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

__all__ = ["MIB", "now", "quartiles", "resident_peak", "start_of_peak", "tensor_peak"]

MIB = 2**20
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def now(device: torch.device) -> float:
    """The time, once all work on the device is done.

    Args:
        device: The device.

    Returns:
        Seconds of a clock that only goes forward.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile.

    Args:
        values: At least one number.

    Returns:
        The three; of a single number three times that number.
    """
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def tensor_peak(device: torch.device, work: Callable[[], object]) -> int:
    """Most bytes of tensors alive at a time, above what was there before.

    Args:
        device: Where the tensors are: on the CPU the work runs under PyTorch's profiler, which is no time to measure.
        work: What to run.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def start_of_peak() -> int | None:
    """Let the peak of resident memory start from what is resident now.

    Returns:
        What is resident, in KiB; None where the system does not tell (it does on Linux).
    """
    if not _RESET.exists():
        return None
    _RESET.write_text("5")
    return _resident("VmRSS")


def resident_peak(start: int | None) -> float | None:
    """Peak of the resident memory of this process since :func:`start_of_peak`, above what was resident then.

    Args:
        start: What that function returned.

    Returns:
        MiB, or None where the system does not tell.
    """
    return None if start is None else round((_resident("VmHWM") - start) / 1024, 1)


def _resident(field: str) -> int:
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
