import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import pathex
from pathex.pruning import malloc
from pathex.pruning.malloc import keeps_freed_memory

glibc = pytest.mark.skipif(malloc._glibc() is None, reason="glibc only")


def page_faults(passes):
    """Of passes that each fill 40 MiB in blocks and free them."""

    def one():
        blocks = [torch.ones(2**20) for _ in range(10)]
        del blocks

    one()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(passes):
        one()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
def test_freed_memory_is_used_again():
    with keeps_freed_memory():
        assert page_faults(5) < 5 * 10 * 2**22 / 2**12 / 4  # one in four of the pages


@glibc
def test_the_last_one_out_gives_memory_back(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, parameter, value):
            calls.append((parameter, value))

        def malloc_trim(self, pad):
            calls.append(("trim", pad))

    monkeypatch.setattr(malloc, "_glibc", Library)

    def fails():
        with pytest.raises(KeyboardInterrupt), keeps_freed_memory():
            raise KeyboardInterrupt

    with keeps_freed_memory():
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join()
        assert ("trim", 0) not in calls
    assert calls[-3:] == [(-3, 32 * 2**20), (-1, 64 * 2**20), ("trim", 0)] and not malloc._inside


GROWTH = """
import resource
from pathlib import Path
import torch
from pathex.pruning.malloc import keeps_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

for budget in (256 * 2**20, None):
    before = resident()
    with keeps_freed_memory(budget):
        blocks = [torch.ones(2**20) for _ in range(50)]  # of 4 MiB each
        del blocks[::2]
        half = resident() - before
        blocks.clear()
        print(half, resident() - before)
"""


@glibc
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux only")
def test_under_a_budget_what_is_free_goes_back():
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True, timeout=120)
    half, none, half_kept, none_kept = map(float, done.stdout.split())
    assert half < 120 and none < 20
    assert half_kept > 180 and none_kept > 180


@pytest.mark.filterwarnings("ignore:weights, scores and images take", "ignore:one image takes")
@pytest.mark.parametrize(
    ("memory", "wanted"),
    [
        (None, {-3: 2**25, -1: 2**30}),
        ("2GiB", {-3: 2**23, -1: 2**28}),
        ("100GiB", {-3: 2**25, -1: 2**30}),
        (1, {-3: 2**20, -1: 2**20}),
    ],
)
def test_a_prune_keeps_as_much_as_its_budget_allows(memory, wanted, monkeypatch):
    calls = []

    class Library:
        def mallopt(self, parameter, value):
            calls.append((parameter, value))

        def malloc_trim(self, pad): ...

    monkeypatch.setattr(malloc, "_glibc", Library)
    pathex.prune(nn.Linear(3, 4), "px", sparsity=0.5, data=torch.randn(4, 3), rounds=2, memory=memory)
    assert wanted.items() <= dict(calls[:2]).items()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    malloc._glibc.cache_clear()
    try:
        assert malloc._glibc() is None
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        assert pathex.prune(net, "px", sparsity=0.5, data=torch.randn(4, 3), rounds=2).mask.kept == 10
    finally:
        malloc._glibc.cache_clear()
