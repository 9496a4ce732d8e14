from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

import pathex.experiments.runs
from experiments.report.conftest import fake_run


@pytest.fixture
def runs(monkeypatch):
    """The settings that a run got; in its place stands a fake that sends events and leaves a run folder."""
    seen = []

    def fake(config, *, on_event):
        seen.append(config)
        changes = {name: value for name, value in asdict(config).items() if name in {"epochs", "model_options"}}
        folder = fake_run(Path(config.out), config.method, config.sparsity, config.seed, **changes)
        result = {"method": config.method, "test_accuracy": 0.5, "kept": 10, "total": 100, "dead_layers": 1}
        result |= {"prune_seconds": 1.0, "train_seconds": 2.0}
        on_event("prune_round", {"round": 1, "rounds": 2, "density": 0.5})
        on_event("prune_done", {"seconds": 1.0, "kept": 1000, "total": 4000})
        on_event("resumed", {"stage": "training", "epoch": 0, "epochs": 20})
        on_event("epoch", {"epoch": 1, "epochs": 20, "train_loss": 1.0, "train_accuracy": 0.25})
        on_event("done", {"result": result, "folder": str(folder)})
        return SimpleNamespace(folder=folder, result=result)

    monkeypatch.setattr(pathex.experiments.runs, "run", fake)
    monkeypatch.setattr("pathex.experiments.report.assembly.painted", lambda *_, **__: (b"", b""))  # it takes long
    return seen
