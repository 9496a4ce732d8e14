"""Jobs of a sweep: what one process does for it, the interface of what carries them out, and shares of a machine."""

import contextlib
import gc
import traceback
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pathex.errors import FolderInUse, PathexError, PathexWarning
from pathex.experiments.runs import RunConfig
from pathex.experiments.sweep.config import SweepConfig

ENDED = "ended"
"""Kind of the last message about a job. Its payload has ``status``: ``done``, ``failed``, ``busy`` (another process has
the folder) or ``lost`` (the process ended without a word); and ``error``, ``traceback`` where there are any."""


@dataclass(frozen=True)
class Job:
    """One run by the name of its folder, to be carried out by some process with so many threads."""

    name: str
    config: RunConfig
    threads: int


class Message(NamedTuple):
    """What is heard of a job: ``start``, ``warning``, an event of ``pathex.experiments.runs.run``, or ``ended``."""

    name: str
    kind: str
    payload: dict[str, Any]


def ended(status: str, error: str | None = None, trace: str = "") -> dict[str, Any]:
    """The payload of the last message about a job: its status, and in one line and in full what went wrong."""
    return {"status": status, "error": error, "traceback": trace}


def carry_out(job: Job, send: Callable[[str, dict[str, Any]], None]) -> dict[str, Any]:
    """Carry out one run in this process."""
    import torch

    from pathex.experiments.runs import run

    torch.set_num_threads(job.threads)
    try:
        _check_free(Path(job.config.out) / job.name)
        send("start", {})
        with _warnings_sent(send):
            run(job.config, on_event=send)
    except FolderInUse:
        return ended("busy")
    except Exception as error:
        said = " ".join(str(error).split())
        # Errors raised on purpose say all there is to say; of others the kind is half the message.
        line = said if isinstance(error, PathexError) else f"{type(error).__name__}: {said}".removesuffix(": ")
        return ended("failed", line, "".join(traceback.format_exception(error)))
    finally:
        # The process goes on to other runs, and on a GPU others share the memory that a cache would hold.
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    return ended("done")


def _check_free(folder: Path) -> None:
    """Refuse a folder that another process works in, before the run loads its data, after which it locks the folder."""
    from pathex.experiments.runs import locked

    if (folder / ".lock").exists():
        with locked(folder):
            pass


@contextlib.contextmanager
def _warnings_sent(send: Callable[[str, dict[str, Any]], None]) -> Iterator[None]:
    """Warnings of pathex become messages; others go to the output of the process. Each comes once in a run."""
    seen: set[tuple[Any, ...]] = set()
    with warnings.catch_warnings():
        # Python itself forgets which were shown whenever somebody catches warnings.
        warnings.simplefilter("always")
        show = warnings.showwarning

        def handle(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
            key = (str(message), category, *place[:2])
            if key in seen:
                return
            seen.add(key)
            if issubclass(category, PathexWarning):
                send("warning", {"message": " ".join(str(message).split())})
            else:
                show(message, category, *place, **options)

        warnings.showwarning = handle
        yield


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


def share(concurrent: int | None, threads: int | None, gpus: int, cores: int) -> Share:
    """How many runs go on at a time on each GPU or on the CPU, and with how many threads; None leaves it open."""
    most = max(1, cores // max(1, gpus))
    if concurrent is not None and concurrent > most:
        where = "on each GPU" if gpus else "at a time"
        message = f"concurrent is {concurrent}; {most} runs go on {where}, as there are {cores} processors"
        warnings.warn(message, PathexWarning, stacklevel=3)
        concurrent = most
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

    from pathex.distributed import cores
    from pathex.experiments.sweep.local import LocalExecutor

    gpus = torch.cuda.device_count() if gpu else 0
    return LocalExecutor(share(config.concurrent, config.threads, gpus, cores()))
