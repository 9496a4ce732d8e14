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


def test_children_have_their_own_environment_and_tell_how_they_ended():
    children = [Child(work, "hello", environment={"PATHEX_CHILD": "yes"}) for _ in range(3)]
    for child, word in zip(children, ("end", "wait", "wait"), strict=True):
        assert child.connection.recv()[:2] == ("hello", "yes") and "PATHEX_CHILD" not in os.environ
        child.connection.send(word)
    assert children[0].ending() == "ended with code 0"
    stop(children[:2], 10.0)  # asked to stop, and then killed
    stop(children[2:])
    assert children[1].ending() == "was ended by SIGTERM"
    assert children[2].ending() == "was ended by SIGKILL (out of memory?)"


PARENT = """
from distributed.test_children import work
from pathex.distributed import Child
child = Child(work, "hello", environment={"PATHEX_CHILD": "yes"})
print(child.connection.recv()[2], flush=True)
child.connection.send("wait")
child.process.join()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_child_ends_with_a_parent_that_is_killed():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    os.kill(child, 0)  # it is there
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(child, 0)
            time.sleep(0.05)
