"""Run folders as pathex.experiments.runs leaves them, with made-up numbers."""

import json
import random
from itertools import product

import pytest
import torch
import yaml

from pathex.masks import Mask

TOTAL = 7984
DROP = {"dense": 0.0, "px": 0.05, "synflow": 0.06, "magnitude": 0.11, "random": 0.12}
RESULT = ("test_accuracy", "test_miou", "val_accuracy", "metric", "tasks", "classes")
RESULT += ("bytes", "dead_layers", "dead_outputs", "parameters", "multiply_adds", "total", "train_loss")
GRID = (0.36, 0.5904, 0.738, 0.8322, 0.893, 0.9312, 0.956, 0.9717, 0.982)


def fake_run(parent, method, sparsity=0.9, seed=0, **changes):
    """Writes one finished run; ``changes`` are settings, or entries of the result as far as ``RESULT`` names them."""
    result = {name: changes.pop(name) for name in RESULT if name in changes}
    config = {"method": method, "sparsity": sparsity, "model": "resnet20", "data": "fashion-mini", "seed": seed}
    config |= {"rounds": None, "allocation": "global", "epochs": 4, "lr": 0.1, "method_options": {}, "out": "runs"}
    config |= changes
    metric = result.get("metric", "accuracy")
    noise = random.Random(f"{method}{sparsity}{seed}").gauss(0, 0.004)
    value = 0.9 - DROP.get(method, 0.1) * (1 + 3 * max(0.0, sparsity - 0.8)) + noise
    tag = "-".join(f"{k}{v}".replace("/", "_") for k, v in sorted(changes.items()))
    folder = parent / f"{method}-{sparsity}-{seed}-{tag}"[:200].rstrip("-")
    folder.mkdir(parents=True)
    kept = TOTAL if method == "dense" else round((1 - sparsity) * TOTAL)
    known = {"torch": "2.x", "device": {"name": "cpu", "threads": 1}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(known), encoding="utf-8")
    rows = [{"epoch": e, "train_loss": 2.0 / e, f"train_{metric}": value * e / 4, "lr": 0.1} for e in range(1, 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    body = {"status": "done", "method": method, "sparsity": sparsity, "seed": seed, "kept": kept, "total": TOTAL}
    body |= {} if "tasks" in result else {f"test_{metric}": value}
    body |= {"prune_seconds": 1.5, "train_seconds": 60.0, "dead_layers": 0}
    body |= {"dead_layer_names": [], "epochs": 4, "rounds": 100, "allocation": "global"}
    (folder / "result.json").write_text(json.dumps(body | result), encoding="utf-8")
    return folder


def fake_mask(folder, **kept):
    """Writes a mask over parameters of twelve weights each, of which the first are kept."""
    Mask({f"{name}.weight": torch.arange(12).view(4, 3) < count for name, count in kept.items()}).save(
        folder / "mask.safetensors"
    )


@pytest.fixture
def make_run(tmp_path):
    return lambda method, *args, **changes: fake_run(tmp_path / "runs", method, *args, **changes)


@pytest.fixture
def unpainted(monkeypatch):
    """Pictures are laid out and not painted, which takes most of the time of a report."""
    monkeypatch.setattr("pathex.experiments.report.assembly.painted", lambda *_, **__: (b"", b""))


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Five methods, three seeds, two sparsities, dense once a seed; not to be changed by tests."""
    parent = tmp_path_factory.mktemp("study")
    for seed, method in product(range(3), DROP):
        for sparsity in (0.9,) if method == "dense" else (0.9, 0.982):
            fake_run(parent, method, sparsity, seed)
    return parent
