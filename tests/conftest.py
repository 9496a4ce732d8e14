"""What all tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def pytest_configure() -> None:
    # The tensors of the tests are tiny: threads that wait for each other on a busy machine cost more than they give.
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def benchmark_scripts() -> Iterator[None]:
    """The scripts of benchmarks/ can be imported by their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield
