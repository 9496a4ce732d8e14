"""What one process does for a sweep: one run, its events sent, its failure told as data."""

import contextlib
import gc
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pathex.errors import FolderInUse, PathexError, PathexWarning
from pathex.experiments.runs import RunConfig

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
