"""What all tests share."""

import os
import zlib
from pathlib import Path

import pytest
import torch

from forked import Forked, preload
from pathex.cli import main


def pytest_configure():
    # The tensors of the tests are tiny: threads that wait for each other on a busy machine cost more than they give.
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # A draw belongs to its test, whatever ran before it: what fails once fails again.
    torch.manual_seed(zlib.crc32(item.nodeid.encode()))


@pytest.fixture(autouse=True, scope="session")
def _children_find_torch_imported():
    preload()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathex.distributed.children.Popen", Forked)
        yield


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """Runs ``pathex`` in an empty folder: exit code, standard output, standard error."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*words):
        code = main(words)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real images and checkpoints."""
    if "PATHEX_DATA" not in os.environ:
        pytest.skip("PATHEX_DATA is not set")
    return Path(os.environ["PATHEX_DATA"])
