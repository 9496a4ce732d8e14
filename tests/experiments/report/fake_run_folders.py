"""Run folders as pathex.experiments.runs leaves them, with made-up numbers."""

import json
import random

import yaml

LAYERS = {"conv1.weight": 432, "layer1.0.conv1.weight": 2304, "layer2.0.conv1.weight": 4608, "linear.weight": 640}
DROP = {"dense": 0.0, "px": 0.05, "synflow": 0.06, "magnitude": 0.11, "random": 0.12}

RESULT = ("test_accuracy", "test_miou", "metric", "tasks", "classes")
RESULT += ("bytes", "dead_layers", "parameters", "multiply_adds", "total")
GRID = (0.36, 0.5904, 0.738, 0.8322, 0.893, 0.9312, 0.956, 0.9717, 0.982)


def make_run(parent, method, sparsity=0.9, seed=0, **changes):
    """Writes one finished run; ``changes`` are settings, or entries of the result as far as ``RESULT`` names them."""
    result = {name: changes.pop(name) for name in RESULT if name in changes}
    config = {"method": method, "sparsity": sparsity, "model": "resnet20", "data": "fashion-mini", "seed": seed}
    config |= {"rounds": None, "allocation": "global", "epochs": 4, "lr": 0.1, "method_options": {}, "out": "runs"}
    config |= changes
    metric = result.get("metric", "accuracy")
    noise = random.Random(f"{method}{sparsity}{seed}").gauss(0, 0.004)
    fall = max(0.0, sparsity - 0.8) if sparsity > 0.8 else 0.0
    value = 0.9 - (0.0 if method == "dense" else DROP.get(method, 0.1) * (1 + 3 * fall)) + noise
    tag = "-".join(f"{k}{v}".replace("/", "_") for k, v in sorted(changes.items()))
    folder = parent / f"{method}-{sparsity}-{seed}-{tag}".rstrip("-")
    folder.mkdir(parents=True)
    total = sum(LAYERS.values())
    kept = total if method == "dense" else round((1 - sparsity) * total)
    write(folder, "config.yaml", yaml.safe_dump(config))
    write(folder, "environment.json", json.dumps({"torch": "2.x", "device": {"name": "cpu", "threads": 1}}))
    rows = [{"epoch": e, "train_loss": 2.0 / e, f"train_{metric}": value * e / 4, "lr": 0.1} for e in range(1, 5)]
    write(folder, "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    body = {"status": "done", "method": method, "sparsity": sparsity, "seed": seed, "kept": kept, "total": total}
    body |= {} if "tasks" in result else {f"test_{metric}": value}
    body |= {"prune_seconds": 1.5, "train_seconds": 60.0, "dead_layers": 0}
    body |= {"dead_layer_names": [], "epochs": 4, "rounds": 100, "allocation": "global"}
    write(folder, "result.json", json.dumps(body | result))
    return folder


def make_study(parent, methods=tuple(DROP), sparsities=(0.9,)):
    """Three seeds of each method and sparsity, dense once a seed."""
    for seed in range(3):
        for method in methods:
            for sparsity in sparsities if method != "dense" else (0.9,):
                make_run(parent, method, sparsity, seed)
    return parent


def write(folder, name, text):
    """Writes one file of a run."""
    (folder / name).write_text(text, encoding="utf-8")
