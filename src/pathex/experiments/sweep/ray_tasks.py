"""Runs as tasks of Ray, on this machine or on a cluster."""

import contextlib
import logging
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

from pathex.distributed import cores
from pathex.errors import InvalidInput
from pathex.experiments.sweep.work import ENDED, Executor, Job, Message, carry_out, ended, share

_SECONDS_TO_STOP = 10.0
_STORE_BYTES = 100 * 2**20


class RayExecutor(Executor):
    """Tasks of Ray, one for each run. Ray decides where and when by processors and by parts of a GPU."""

    def __init__(self, concurrent: int | None, threads: int | None, *, gpu: bool, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else every start prints advice about it
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import ray
        except ImportError:
            raise InvalidInput("executor 'ray' needs Ray, which is not installed: pip install 'pathex[ray]'") from None
        self._ray: Any = ray
        alone = share(None if address else concurrent, threads, 0, cores())
        _connect(ray, address, cores() if gpu else alone.workers * alone.threads)
        gpus = int(ray.cluster_resources().get("GPU", 0)) if gpu else 0
        shared = share(concurrent, threads, gpus, int(ray.cluster_resources().get("CPU", 1))) if gpus else alone
        self.threads = shared.threads
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(_Mailbox).remote()
        # Ray's own retries stay off: a run whose process is lost is submitted again by the sweep, which counts.
        options: dict[str, Any] = {"num_cpus": self.threads, "max_retries": 0}
        if gpus:
            options["num_gpus"] = 1 / shared.each
        self._task = ray.remote(**options)(_task)
        self._running: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        """Take a job; Ray starts it when there is room."""
        self._running[self._task.remote(job, self._mailbox, str(Path.cwd()))] = job

    def listen(self, seconds: float) -> list[Message]:
        """What was heard of the tasks since the last call."""
        if not self._running:
            time.sleep(seconds)
            return []
        over, _ = self._ray.wait(list(self._running), timeout=seconds)
        messages = [Message(*message) for message in self._ray.get(self._mailbox.take.remote())]
        for task in over:
            try:
                outcome = self._ray.get(task)
            except self._ray.exceptions.RayError as error:
                line = f"the task of the run was lost: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
                outcome = ended("lost", line, str(error))
            messages.append(Message(self._running.pop(task).name, ENDED, outcome))
        return messages

    def close(self) -> None:
        """Cancel the tasks and leave the cluster; a cluster that was started here ends."""
        try:
            for task in self._running:
                self._ray.cancel(task)
            if self._running:
                self._ray.wait(list(self._running), num_returns=len(self._running), timeout=_SECONDS_TO_STOP)
        finally:
            self._ray.shutdown()


def _connect(ray: Any, address: str | None, cpus: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InvalidInput(f"address {address!r}: {' '.join(str(error).split())}") from None


class _Mailbox:
    """An actor beside the sweep that keeps messages until they are taken."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, str, dict[str, Any]]] = []

    def post(self, *message: Any) -> None:
        self._messages.append(message)

    def take(self) -> list[tuple[str, str, dict[str, Any]]]:
        taken, self._messages = self._messages, []
        return taken


def _task(job: Job, mailbox: Any, folder: str) -> dict[str, Any]:
    """One run, in a process of Ray; paths are relative to the folder of the sweep."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        os.chdir(folder)
    except OSError as error:
        where = f"the folder {folder} of the sweep is not on this node ({error.strerror})"
        return ended("failed", f"{where}; a cluster needs shared storage")
    # Nobody waits for a message to arrive: a run goes on when its sweep is slow.
    return carry_out(job, lambda kind, payload: mailbox.post.remote(job.name, kind, payload))
