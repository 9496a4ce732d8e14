from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.report import fake_run_folders


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    return lambda method, *args, **changes: fake_run_folders.make_run(tmp_path / "runs", method, *args, **changes)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five methods, three seeds, two sparsities; not to be changed by tests."""
    return fake_run_folders.make_study(tmp_path_factory.mktemp("study"), sparsities=(0.9, 0.982))
