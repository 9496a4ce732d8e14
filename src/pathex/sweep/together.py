"""Runs side by side in this process: they share one GPU, and the images on it.

Each run has a thread and a CUDA stream of its own. One thread at a time prepares a step and starts it on the GPU, then
the next one does, while the GPU works on all of them. Small networks that cannot fill a large GPU do so together.
"""

import contextlib
import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pathex.data import ArraySplit, load
from pathex.sweep.executors import Executor
from pathex.sweep.turns import Turn, Turns
from pathex.sweep.work import ENDED, Job, Message, carry_out, failure

__all__ = ["SharedData", "TogetherExecutor"]

_SECONDS_TO_STOP = 10.0


class TogetherExecutor(Executor):
    """Carries out runs in threads of this process that take turns, a step each.

    Args:
        concurrent: Runs at a time.
        threads: Threads of operations on the CPU.
        device: The GPU; None is the CPU, where runs side by side are no faster than one after the other.
    """

    def __init__(self, concurrent: int, threads: int, device: torch.device | None = None) -> None:
        if device is not None:
            torch.cuda.init()  # before that a GPU has no generator
        self.threads = threads
        self._concurrent, self._device = concurrent, device
        self._turns = Turns(None if device is None else device.index)
        self._data = SharedData(device)
        self._waiting: deque[Job] = deque()
        self._running: dict[str, threading.Thread] = {}
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._threads_before = torch.get_num_threads()

    def submit(self, job: Job) -> None:
        """Take a job; it starts when there is room."""
        self._waiting.append(job)

    def listen(self, seconds: float) -> list[Message]:
        """What was heard since the last call.

        Args:
            seconds: How long to wait for the first message.

        Returns:
            Messages in order for each job.
        """
        while self._waiting and len(self._running) < self._concurrent:
            job = self._waiting.popleft()
            # Ended with the process: a run that does not come to a step for a long time cannot be interrupted.
            thread = threading.Thread(target=self._work, args=(job,), name=job.name, daemon=True)
            self._running[job.name] = thread
            thread.start()
        messages: list[Message] = []
        with contextlib.suppress(queue.Empty):
            messages.append(self._messages.get(timeout=seconds))
            while True:
                messages.append(self._messages.get_nowait())
        for message in messages:
            if message.kind == ENDED:
                self._running.pop(message.name).join()
        return messages

    def close(self) -> None:
        """Stop all runs, each after its step or its round of pruning."""
        self._turns.stop()
        for thread in self._running.values():
            thread.join(_SECONDS_TO_STOP)
        self._running.clear()
        torch.set_num_threads(self._threads_before)

    def _work(self, job: Job) -> None:
        def send(kind: str, payload: dict[str, Any]) -> None:
            self._turns.check()
            self._messages.put(Message(job.name, kind, payload))

        try:
            with Turn(self._turns) as turn, _stream(self._device):
                outcome = carry_out(job, send, callbacks=[turn], load=self._data)
        except KeyboardInterrupt:
            return
        except Exception as error:  # the GPU itself may be lost
            outcome = failure(error)
        self._messages.put(Message(job.name, ENDED, outcome))


@contextlib.contextmanager
def _stream(device: torch.device | None) -> Iterator[None]:
    """A CUDA stream for this thread alone."""
    if device is None:
        yield
        return
    torch.cuda.set_device(device)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        yield
        torch.cuda.current_stream(device).synchronize()  # before what the run used is used by others


class SharedData:
    """Loads each data set once, for all runs; on a GPU their images lie there once, too.

    Args:
        device: The GPU that all runs use, or None.
        load: Loads data by name and options.
    """

    def __init__(self, device: torch.device | None = None, load: Callable[..., Any] = load) -> None:
        self._device, self._load = device, load
        self._known: dict[str, Any] = {}

    def __call__(self, name: str, **options: Any) -> Any:
        """Load a data set, as ``pathex.data.load`` does.

        Args:
            name: Name of a data set.
            **options: Its options.

        Returns:
            The same data for the same arguments. Nothing changes data once they are loaded.
        """
        key = json.dumps([name, options], sort_keys=True, default=repr)
        if key not in self._known:
            data = self._load(name, **options)
            if self._device is not None:
                splits = {part: getattr(data, part) for part in ("train", "test")}
                held = {part: each for part, each in splits.items() if isinstance(each, ArraySplit)}
                data = replace(data, **{part: _OnDevice(each, self._device) for part, each in held.items()})
            self._known[key] = data
        return self._known[key]


class _OnDevice:
    """A split in memory, whose images as a whole are asked for on a device.

    Attributes:
        labels: Class of each image, int64 (N,), on the CPU.
    """

    def __init__(self, split: ArraySplit, device: torch.device) -> None:
        self.labels, self._split, self._device = split.labels, split, device
        self._there: Tensor | None = None

    def __len__(self) -> int:
        return len(self._split)

    @property
    def data(self) -> Tensor:
        """Images, uint8 (N, C, H, W): on the device, where they fit in half of what is free."""
        if self._there is None:
            if self._device.type == "cuda" and self._split.data.nbytes > torch.cuda.mem_get_info(self._device)[0] / 2:
                return self._split.data
            self._there = self._split.data.to(self._device)
            if self._device.type == "cuda":  # other streams must not be ahead of the copy
                torch.cuda.current_stream(self._device).synchronize()
        return self._there

    def images(self, indices: Tensor) -> Tensor:
        """Images by number, on the CPU."""
        return self._split.images(indices)

    def subset(self, rows: Tensor, labels: Tensor) -> ArraySplit:
        """Some of the images, under other labels."""
        return self._split.subset(rows, labels)
