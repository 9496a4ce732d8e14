"""What carries out the runs of a sweep: one small interface, three kinds."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType

from pathex.runs.config import RunConfig
from pathex.sweep.config import SweepConfig
from pathex.sweep.work import Job, Message

__all__ = ["TOGETHER", "Executor", "Share", "create", "processors", "share"]

TOGETHER = 12
"""Runs at a time in one process, where nothing else is asked for."""


class Executor(ABC):
    """Carries out jobs, as many at a time as there is room for. A context manager: its end stops what still runs.

    Attributes:
        threads: Threads of each job.
    """

    threads: int

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Take a job; it starts when there is room."""

    @abstractmethod
    def listen(self, seconds: float) -> list[Message]:
        """What was heard since the last call; every job submitted is heard of in the end.

        Args:
            seconds: How long to wait for the first message.

        Returns:
            Messages in order for each job; the last one of a job is of the kind ``ended``.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop what still runs, and let go of everything. Runs stopped here are taken up by the next sweep."""

    def __enter__(self) -> "Executor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Share:
    """How runs share a machine.

    Attributes:
        workers: Runs at a time.
        threads: Threads of each.
        gpus: GPUs that they are spread over; 0 is the CPU alone.
        each: Runs at a time on each GPU, or on the CPU.
    """

    def __init__(self, workers: int, threads: int, gpus: int, each: int) -> None:
        self.workers, self.threads, self.gpus, self.each = workers, threads, gpus, each


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(concurrent: int | None, threads: int | None, gpus: int, cores: int) -> Share:
    """Decide how many runs go on at a time, and with how many threads.

    Args:
        concurrent: Runs at a time on each GPU, or on the CPU; None chooses.
        threads: Threads of each run; None chooses.
        gpus: GPUs of the machine; 0 is the CPU alone.
        cores: Processors of the machine.

    Returns:
        The share. On the CPU the number of threads never follows from the number of runs, because it decides the last
        bits of the results.
    """
    if gpus == 0:
        threads = threads or 1
        each = concurrent or max(1, cores // threads)
        return Share(each, threads, 0, each)
    each = concurrent or 1
    return Share(each * gpus, threads or max(1, cores // (each * gpus)), gpus, each)


def create(config: SweepConfig, runs: Iterable[RunConfig]) -> Executor:
    """The executor that a sweep asks for.

    Args:
        config: Options of the sweep.
        runs: Settings of its runs.

    Returns:
        The executor.
    """
    gpu = any(run.device != "cpu" for run in runs)
    if config.executor == "ray":
        from pathex.sweep.ray_tasks import RayExecutor

        return RayExecutor(config.concurrent, config.threads, gpu=gpu, address=config.address)
    import torch

    gpus = torch.cuda.device_count() if gpu else 0
    if config.executor == "together":
        from pathex.sweep.together import TogetherExecutor

        device = torch.device("cuda", torch.cuda.current_device()) if gpus else None
        # One run at a time is on the CPU; there the number of threads decides the last bits, as in `share`.
        threads = config.threads or (processors() if gpus else 1)
        return TogetherExecutor(config.concurrent or TOGETHER, threads, device)
    from pathex.sweep.local import LocalExecutor

    return LocalExecutor(share(config.concurrent, config.threads, gpus, processors()))
