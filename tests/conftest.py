"""What all tests share."""

import torch


def pytest_configure():
    # The tensors of the tests are tiny: threads that wait for each other on a busy machine cost more than they give.
    torch.set_num_threads(1)
