"""What all tests share."""

import zlib

import pytest
import torch


def pytest_configure():
    # The tensors of the tests are tiny: threads that wait for each other on a busy machine cost more than they give.
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # A draw belongs to its test, whatever ran before it: what fails once fails again.
    torch.manual_seed(zlib.crc32(item.nodeid.encode()))
