import multiprocessing
import os
from types import SimpleNamespace

import pytest
import torch

from pathex.data import default_workers, read_ahead
from pathex.errors import InvalidInput
from refusals import refused

BATCHES = [[3, 1], [4, 1, 5], [9]]


def read(batch):
    if 4 in batch and 7 in batch:
        raise InvalidInput("no image 4")
    return torch.tensor(batch) * 2, os.getpid()


@pytest.mark.parametrize(
    ("workers", "daemon", "processes"), [(0, "", 0), (1, "", 1), (2, "", 2), (2, "daemon", 0), (None, "", 0)]
)
def test_every_batch_in_order(workers, daemon, processes, monkeypatch):
    if daemon:  # it may not have children
        monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))
    before = torch.get_rng_state()
    found = list(read_ahead(read, BATCHES, workers=workers))
    assert [values.tolist() for values, _ in found] == [[6, 2], [8, 2, 10], [18]]
    assert len({process for _, process in found} - {os.getpid()}) == processes
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_the_line_that_it_was(workers):
    with refused("^no image 4$"):
        list(read_ahead(read, [[1], [4, 7], [2]], workers=workers))


def test_a_pass_that_is_left_ends_its_processes():
    passing = read_ahead(read, BATCHES, workers=2)
    next(passing)
    assert multiprocessing.active_children()
    passing.close()
    assert not multiprocessing.active_children()


def test_cores_are_shared_with_siblings(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(12), raising=False)
    for siblings, expected in (("1", 12), ("4", 3), ("40", 1), ("none", 12)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", siblings)
        assert default_workers() == expected
