"""Settings of runs that take a second, and executors that need no other process."""

from collections import deque

import numpy as np
import pytest

from pathex.experiments.sweep.executors import Executor
from pathex.experiments.sweep.work import ENDED, Job, Message, carry_out


class InProcess(Executor):
    """One run at a time, in this process; ``before`` may stand in for what the world does to a job."""

    threads = 1

    def __init__(self, before=lambda job: None):
        self.waiting: deque[Job] = deque()
        self.seen: list[str] = []
        self.closed = False
        self._before = before

    def submit(self, job):
        self.waiting.append(job)

    def listen(self, seconds):
        if not self.waiting:
            return []
        job = self.waiting.popleft()
        self.seen.append(job.name)
        messages = []
        outcome = self._before(job)
        if outcome is None:
            outcome = carry_out(job, lambda kind, payload: messages.append(Message(job.name, kind, payload)))
        return [*messages, Message(job.name, ENDED, outcome)]

    def close(self):
        self.closed = True


@pytest.fixture
def tiny(tmp_path):
    """Settings for 64 images of 8 pixels and a network of width 2."""
    draws = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 64), ("val", 8), ("test", 16)):
        arrays[f"{split}_images"] = draws.integers(256, size=(count, 8, 8, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 4)[:, None]
    np.savez(tmp_path / "tiny.npz", **arrays)
    return {
        "method": "magnitude",
        "sparsity": 0.75,
        "model_options": {"width": 2},
        "data": f"npz:{tmp_path / 'tiny.npz'}",
        "rounds": 1,
        "images_per_class": 1,
        "epochs": 2,
        "batch_size": 32,
        "device": "cpu",
    }
