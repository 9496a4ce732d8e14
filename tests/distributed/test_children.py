import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pathex.distributed import Child, cores, stop


@pytest.fixture(autouse=True)
def _started_as_for_users(monkeypatch):
    monkeypatch.setattr("pathex.distributed.children.Popen", subprocess.Popen)


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
    child.wait()


def test_children_have_their_own_environment_and_tell_how_they_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])  # a Path, which the import system passes over
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


EARLY = """
import os
from multiprocessing.connection import Connection

from pathex.distributed import Child

Connection.send = lambda *_: os._exit(3)  # when the child is there and waits for its work
Child(print)
"""
UNGUARDED = """
from pathex.distributed import Child

child = Child(print)
print(child.ending())
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EARLY, (3, "", "")),
        (UNGUARDED, (0, "ended with code 1\n", "RuntimeError: the script that starts processes must do so under: if ")),
    ],
    ids=["gone before the child knows its work", "imported by its child"],
)
def test_what_children_say_of_their_parent(tmp_path, text, expected):
    script = tmp_path / "script.py"
    script.write_text(text)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == expected[:2]
    assert expected[2] in done.stderr and bool(done.stderr) == bool(expected[2])


def test_what_cannot_travel_is_refused_before_a_process_is_started(monkeypatch):
    monkeypatch.setattr("pathex.distributed.children.Popen", None)
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        Child(print, lambda: None)


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


TREE = """
import ctypes
import sys
import time


def read(batch):
    time.sleep(100)


def work(connection, what):
    from pathex.data import read_ahead

    connection.send("there")
    if what == "call":
        ctypes.PyDLL(None).sleep(100)  # which holds the interpreter
    for _ in read_ahead(read, [[0], [1]], workers=2):
        pass


if __name__ == "__main__":
    from pathex.distributed import Child

    children = [Child(work, what) for what in ("call", "read")]
    print("started", flush=True)
    print([child.connection.recv() for child in children], flush=True)
    time.sleep(100)
"""


def tree(mark):
    """Processes with an environment variable that their ancestor was started with."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (place / "environ").read_bytes() and (place / "stat").read_text().split()[2] != "Z":
                found.append(int(place.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="processes are listed under /proc")
@pytest.mark.parametrize("lines", [0, 1, 2], ids=["as it starts them", "as they import torch", "as they work"])
def test_a_tree_of_processes_ends_with_its_root(tmp_path, lines):
    script, mark = tmp_path / "tree.py", f"PATHEX_TREE={tmp_path}"
    script.write_text(TREE)
    environment = {**os.environ, "PATHEX_TREE": str(tmp_path)}
    root = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE)
    for _ in range(lines):
        root.stdout.readline()
    limit = time.monotonic() + 60
    while len(tree(mark.encode())) < (2, 3, 5)[lines] and time.monotonic() < limit:
        time.sleep(0.05)
    root.kill()
    root.communicate()
    limit = time.monotonic() + 10
    while (left := tree(mark.encode())) and time.monotonic() < limit:
        time.sleep(0.05)
    assert left == []


def test_a_child_finds_its_parent_before_it_imports_torch():
    code = "import sys, pathex.distributed.children; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_processors_are_those_of_the_affinity_and_of_the_quota(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for quota, found in (("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)):
        monkeypatch.setattr(Path, "read_bytes", lambda *_, text=quota: text.encode())
        assert cores() == found
