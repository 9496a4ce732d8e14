import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from pathex.distributed import Child, stop


def work(connection, word):
    connection.send((word, os.environ["PATHEX_CHILD"], os.getpid()))
    if connection.recv() == "wait":
        time.sleep(60)


def start():
    return Child(work, "hello", environment={"PATHEX_CHILD": "yes"})


def be_parent(connection):
    child = start()
    connection.send(child.connection.recv()[2])
    child.connection.send("wait")
    child.process.join()


def test_children_have_their_own_environment_and_tell_how_they_ended():
    children = [start() for _ in range(3)]
    for child, word in zip(children, ("end", "wait", "wait"), strict=True):
        assert child.connection.recv()[:2] == ("hello", "yes") and "PATHEX_CHILD" not in os.environ
        child.connection.send(word)
    assert children[0].ending() == "ended with code 0"
    stop(children[:2], 10.0)  # asked to stop, and then killed
    stop(children[2:])
    assert children[1].ending() == "was ended by SIGTERM"
    assert children[2].ending() == "was ended by SIGKILL (out of memory?)"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_child_ends_with_a_parent_that_is_killed():
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    parent = context.Process(target=be_parent, args=(theirs,))
    parent.start()
    child = ours.recv()
    os.kill(child, 0)  # it is there
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(child, 0)
            time.sleep(0.05)


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
    import torch.distributed.nn  # which has functions with the default group in their signature

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
