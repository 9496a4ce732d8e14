import subprocess
import sys

import pytest

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
WORK = """
from pathlib import Path

import torch

from pathex.distributed import launched


def work():
    import torch._dynamo  # which has functions with the default group in their signature

    torch.distributed.barrier()


if __name__ == "__main__":
    with launched({devices}, work):
        work()
    threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    print("group threads:", sum("gloo" in name for name in threads))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed under /proc")
@pytest.mark.parametrize("launcher", [(), pytest.param(TORCHRUN, marks=pytest.mark.slow)], ids=["launched", "torchrun"])
def test_the_threads_of_a_group_end_with_it(tmp_path, launcher):
    script = tmp_path / "work.py"
    script.write_text(WORK.format(devices=1 if launcher else 2))
    done = subprocess.run([sys.executable, *launcher, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.splitlines() == ["group threads: 0"], done.stderr
