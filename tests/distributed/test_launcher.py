import subprocess
import sys

import pytest

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
WORK = """
import time
from pathlib import Path

import torch

from pathex.distributed import launched


def group_threads():
    found = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            found += "gloo" in (task / "comm").read_text()
        except OSError:  # it ended meanwhile
            pass
    return found


def work():
    import torch._dynamo  # which has functions with the default group in their signature

    torch.distributed.barrier()


if __name__ == "__main__":
    with launched({devices}, work):
        work()
    limit = time.monotonic() + 5  # a thread that was joined may be listed a moment longer
    while (found := group_threads()) and time.monotonic() < limit:
        time.sleep(0.05)
    print("group threads:", found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed under /proc")
@pytest.mark.parametrize("launcher", [(), pytest.param(TORCHRUN, marks=pytest.mark.slow)], ids=["launched", "torchrun"])
def test_the_threads_of_a_group_end_with_it(tmp_path, launcher):
    script = tmp_path / "work.py"
    script.write_text(WORK.format(devices=1 if launcher else 2))
    done = subprocess.run([sys.executable, *launcher, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.splitlines() == ["group threads: 0"], done.stderr
