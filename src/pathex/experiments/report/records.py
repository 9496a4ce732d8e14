"""Run folders, found and read."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from pathex.errors import InvalidInput, reason, refusing
from pathex.files import changed, read
from pathex.masks import Mask

_RESULT = "result.json"
_CONFIG = "config.yaml"
_FAILED = "failed.json"
_ENVIRONMENT = "environment.json"
_INPUTS = "inputs.json"
_NUMBERS = (
    *("parameters", "bytes", "multiply_adds", "dead_layers", "dead_outputs", "prune_seconds", "train_seconds"),
    *("rounds", "epochs", "train_loss"),
)
_KINDS = {int, float, type(None)}
_METRICS = "metrics.jsonl"
_MASK = "mask.safetensors"
_PRUNING = "pruning.json"


@dataclass(frozen=True)
class RunRecord:
    """One finished run, as its folder tells it."""

    folder: Path
    config: Mapping[str, Any]  # options under dotted names, such as method_options.redraw
    result: Mapping[str, Any]
    environment: Mapping[str, Any]  # dotted names too
    epochs: Sequence[Mapping[str, Any]]
    layers: Mapping[str, tuple[int, int]]  # kept and all weights of each pruned parameter
    channels: Mapping[str, tuple[int, int]]  # its output channels on a path, and all; earlier versions do not tell
    code: Mapping[str, str]  # the user's modules of scorer and model, such as ``module 'mine'``, to their digests
    split: str = "test"  # the images that the metric is of; or ``validation``, those held out of the training images

    @property
    def method(self) -> str:
        """What decides the mask: the scorer, ``dense`` and other ways of training, or the dynamic method."""
        return self.dynamic or str(self.config["method"])

    @property
    def dynamic(self) -> str | None:
        """The method that changes the mask during training, such as ``rigl``."""
        name = self.config.get("dynamic")
        return None if name in {None, "none"} else str(name)

    @property
    def sparsity(self) -> float:
        """The sparsity that was asked for; 0 for a dense run."""
        return 0.0 if self.method == "dense" else float(self.config["sparsity"])

    @property
    def weights(self) -> str:
        """Weights that the network starts from; empty for random initialization."""
        return str(self.config.get("weights") or "")

    @property
    def experiment(self) -> tuple[str, str, str, str]:
        """Network, data, weights and task: one section of a report."""
        return str(self.config["model"]), str(self.config["data"]), self.weights, self.task

    @property
    def task(self) -> str:
        """What the network was trained to do: ``classification``, ``segmentation`` or ``transfer``."""
        if self.tasks:
            return "transfer"
        return "segmentation" if _metric(self.result) == "miou" else "classification"

    @property
    def metric(self) -> str:
        """Name of what was measured: ``accuracy``, or ``miou`` for the mean IoU; with ``val_`` on held-out images."""
        return _metric(self.result, self.split)

    @property
    def value(self) -> float:
        """The metric; for a transfer run that has none on the test images, the mean over tasks after fine-tuning."""
        value = self.result.get(_key(self.metric))
        return float(value) if value is not None else fmean(row["fine_tuned"] for row in self.tasks)

    @property
    def tasks(self) -> Sequence[Mapping[str, Any]]:
        """One row for each task of a transfer run, with ``zero_shot`` and ``fine_tuned``; empty for other runs."""
        return self.result.get("tasks") or ()

    def kept(self, names: Sequence[str]) -> np.ndarray:
        """Which weights of some parameters the mask keeps, as packed bits, one parameter after the other."""
        mask = Mask.load(self.folder / _MASK)
        return np.packbits(np.concatenate([mask[name].numpy().ravel() for name in names] or [np.zeros(0, bool)]))


class Problem(NamedTuple):
    """A run folder that the tables leave out, and why."""

    folder: Path
    reason: str


def read_all(folders: Sequence[Path], split: str = "test") -> tuple[list[RunRecord], list[Problem]]:
    """Finds and reads every run in or below some folders."""
    records: list[RunRecord] = []
    problems: list[Problem] = []
    for folder in _find(folders):
        try:
            records.append(_read(folder, split))
        except Exception as error:  # noqa: PERF203 -- one bad folder, whatever is bad about it, stops no report
            problems.append(Problem(folder, reason(error)))
    places = ", ".join(str(folder) for folder in folders) or "nothing"
    if not records and not problems:
        raise InvalidInput(f"no run found in {places}: a run folder holds {_CONFIG} and {_RESULT}")
    if not records:
        raise InvalidInput(f"no finished run in {places}: {problems[0].folder.name}: {problems[0].reason}")
    return records, problems


def _find(folders: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    seen: set[Path] = set()
    waiting = [*folders]
    if missing := [folder for folder in waiting if not folder.is_dir()]:
        raise InvalidInput(f"no such folder: {missing[0]}")
    for start in waiting:  # links come last: a run bears the name of its own folder
        for place, below, files in os.walk(start):
            path, names = Path(place), {*below, *files}
            new, is_run = path.resolve() not in seen, not names.isdisjoint({_RESULT, _CONFIG, _FAILED})
            seen.add(path.resolve())
            found += [path] if new and is_run else []
            # Below a run there is no other: a logger may keep a config.yaml of its own there.
            below[:] = sorted(below) if new and not (is_run and _ENVIRONMENT in names) else []
            waiting += [path / name for name in below if (path / name).is_symlink()]
    return found


def _read(folder: Path, split: str) -> RunRecord:
    # A run that failed and was then run again to its end has both files.
    if (folder / _FAILED).exists() and not (folder / _RESULT).exists():
        error = str(read(folder / _FAILED, _FAILED, holds=dict).get("error") or "no reason was written down")
        raise InvalidInput(f"failed: {error.splitlines()[0]}")
    config = _read_config(folder / _CONFIG)
    epochs = _read_rows(folder / _METRICS)
    if not (folder / _RESULT).exists():
        raise InvalidInput(f"not finished: {len(epochs)} of {config.get('epochs', '?')} epochs trained")
    result = read(folder / _RESULT, _RESULT, holds=dict)
    _check_result(result, split)
    environment, mask, inputs, pruning = (folder / name for name in (_ENVIRONMENT, _MASK, _INPUTS, _PRUNING))
    made_from = read(inputs, holds=dict) if inputs.exists() else {}
    found = read(pruning, _PRUNING, holds=dict).get("report", {}) if pruning.exists() else {}
    if damaged := changed(folder, result.pop("files", {}), (_CONFIG, _INPUTS, _METRICS, _ENVIRONMENT, _MASK, _PRUNING)):
        raise InvalidInput(f"{'; '.join(damaged)}: the same command with --fresh runs it again")
    with refusing(f"{_MASK} cannot be read ({{}})"):
        layers = dict(Mask.load(mask).counts()) if mask.exists() else {}
    record = RunRecord(
        folder=folder,
        config=config,
        result=result,
        environment=_flat(read(environment, _ENVIRONMENT, holds=dict)) if environment.exists() else {},
        epochs=epochs,
        layers=layers,
        channels={
            name: (all - len(found["dead_channels"][name]), all) for name, all in found.get("channels", {}).items()
        },
        code={name: str(digest) for name, digest in made_from.items() if name.startswith("module ")},
        split=split,
    )
    with refusing("its name or its files cannot be written again ({})"):  # such as bytes that are no UTF-8
        json.dumps({**vars(record), "folder": folder.name}, default=str, ensure_ascii=False).encode()
    return record


def _check_result(result: Mapping[str, Any], split: str) -> None:
    status = result.get("status")
    if status != "done":
        raise InvalidInput(f"not finished: status {status!r}")
    tasks = result.get("tasks") or []
    if not isinstance(tasks, list) or not all(_is_task(row) for row in tasks):
        raise InvalidInput(f"{_RESULT} holds tasks without zero_shot and fine_tuned")
    needed = ["kept", "total", _key(_metric(result, split))]
    if split == "validation" and result.get(needed[-1]) is None:
        raise InvalidInput("no images were held out: --validation says how many")
    if tasks and result.get(needed[-1]) is None:
        needed.pop()
    missing = [name for name in needed if not _is_number(result.get(name))]
    if missing:
        raise InvalidInput(f"{_RESULT} holds no {', '.join(missing)}")
    _check_kinds(_RESULT, result, (), _NUMBERS)
    if result["total"] <= 0 or not isinstance(result.get("classes") or [], list):
        raise InvalidInput(f"{_RESULT} holds total {result['total']!r} and classes {result.get('classes')!r}")


def _check_kinds(file: str, content: Mapping[str, Any], texts: Sequence[str], numbers: Sequence[str]) -> None:
    wrong = [name for name in texts if not isinstance(content.get(name), str | None)]
    wrong += [name for name in numbers if content.get(name) is not None and not _is_number(content[name])]
    if wrong:
        raise InvalidInput(f"{file} holds {wrong[0]} {content[wrong[0]]!r}")


def _is_task(row: Any) -> bool:
    return isinstance(row, Mapping) and all(_is_number(row.get(name)) for name in ("zero_shot", "fine_tuned"))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _metric(result: Mapping[str, Any], split: str = "test") -> str:
    return ("" if split == "test" else "val_") + str(result.get("metric") or "accuracy")


def _key(metric: str) -> str:
    return metric if metric.startswith("val_") else f"test_{metric}"


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise InvalidInput(f"{_CONFIG} is missing")
    config = read(path, path.name, holds=dict)
    missing = [name for name in ("method", "sparsity", "model", "data", "seed") if config.get(name) is None]
    if missing:
        raise InvalidInput(f"{_CONFIG} holds no {', '.join(missing)}")
    _check_kinds(_CONFIG, config, ("method", "model", "data", "weights", "dynamic"), ("sparsity", "seed"))
    if not 0 <= round(config["sparsity"], 12) < 1:
        raise InvalidInput(f"{_CONFIG} holds sparsity {config['sparsity']!r}; allowed: a number in [0, 1)")
    options = {name: value for name, value in config.items() if name.endswith("_options") and isinstance(value, dict)}
    dotted = {f"{name}.{option}": value for name, values in options.items() for option, value in values.items()}
    return {name: value for name, value in config.items() if name not in options} | dotted


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = read(path, path.name)
    if not all(isinstance(row, dict) and "epoch" in row and {*map(type, row.values())} <= _KINDS for row in rows):
        raise InvalidInput(f"{path.name} holds a line that is no epoch with numbers")
    return rows


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
