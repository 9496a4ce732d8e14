"""Executors that need no other process."""

from collections import deque

import pytest

from pathex.experiments.sweep.work import ENDED, Executor, Job, Message, carry_out


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
def tiny(small):
    return small | {"model": "model_factories:tiny"}
