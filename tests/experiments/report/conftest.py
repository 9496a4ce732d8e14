import pytest

from experiments.report import fake_run_folders


@pytest.fixture
def make_run(tmp_path):
    return lambda method, *args, **changes: fake_run_folders.make_run(tmp_path / "runs", method, *args, **changes)


@pytest.fixture
def unpainted(monkeypatch):
    """Pictures are laid out and not painted, which takes most of the time of a report."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Five methods, three seeds, two sparsities; not to be changed by tests."""
    return fake_run_folders.make_study(tmp_path_factory.mktemp("study"), sparsities=(0.9, 0.982))
