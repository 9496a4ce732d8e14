"""Children of the tests, forked by a process that has imported and done nothing else: torch starts for seconds."""

import multiprocessing
import os
import re
import subprocess
from multiprocessing.connection import Connection

from pathex.distributed import children

IMPORTED = ("torch._dynamo", "torchvision", "timm", "lightning_fabric", "torchmetrics", "pathex.experiments.runs")


def preload():
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTED))


class Forked:
    """What `pathex.distributed.Child` gets in place of `subprocess.Popen`."""

    def __init__(self, command, *, env, **_):
        end = Connection(os.dup(int(re.search(r"_main\((\d+)", command[-1])[1])))
        self._process = multiprocessing.get_context("forkserver").Process(target=_be_child, args=(end, env))
        self._process.start()
        end.close()
        self.terminate, self.kill = self._process.terminate, self._process.kill

    @property
    def returncode(self):
        return self._process.exitcode

    def wait(self, seconds=None):
        self._process.join(seconds)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a child", seconds)
        return self.returncode


def _be_child(end, env):
    os.environ.clear()
    os.environ.update(env)
    children._main(os.dup(end.fileno()), os.getppid())
