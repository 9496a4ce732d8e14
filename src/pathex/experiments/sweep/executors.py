"""The interface of what carries out the runs of a sweep, and how runs share a machine."""

import os
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pathex.experiments.runs import RunConfig
from pathex.experiments.sweep.config import SweepConfig
from pathex.experiments.sweep.work import Job, Message


class Executor(AbstractContextManager["Executor"]):
    """Carries out jobs, as many at a time as there is room for. A context manager: its end stops what still runs."""

    threads: int

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Take a job; it starts when there is room."""

    @abstractmethod
    def listen(self, seconds: float) -> list[Message]:
        """What was heard since the last call, after waiting so long for the first message."""

    @abstractmethod
    def close(self) -> None:
        """Stop what still runs, and let go of everything. Runs stopped here are taken up by the next sweep."""

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Share:
    """How runs share a machine: how many at a time, threads of each, GPUs (0: the CPU alone), runs on each of these."""

    workers: int
    threads: int
    gpus: int
    each: int


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(concurrent: int | None, threads: int | None, gpus: int, cores: int) -> Share:
    """How many runs go on at a time on each GPU or on the CPU, and with how many threads; None leaves it open."""
    # On the CPU the number of threads never follows from that of the runs: it decides the last bits of the results.
    if gpus == 0:
        threads = threads or 1
        each = concurrent or max(1, cores // threads)
        return Share(each, threads, 0, each)
    each = concurrent or 1
    return Share(each * gpus, threads or max(1, cores // (each * gpus)), gpus, each)


def create(config: SweepConfig, runs: Iterable[RunConfig]) -> Executor:
    """The executor that the options of a sweep ask for, with a GPU if one of its runs may use it."""
    gpu = any(run.device != "cpu" for run in runs)
    if config.executor == "ray":
        from pathex.experiments.sweep.ray_tasks import RayExecutor

        return RayExecutor(config.concurrent, config.threads, gpu=gpu, address=config.address)
    import torch

    from pathex.experiments.sweep.local import LocalExecutor

    gpus = torch.cuda.device_count() if gpu else 0
    return LocalExecutor(share(config.concurrent, config.threads, gpus, processors()))
