"""Run folders, found and read."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pathex.errors import InvalidInput, PathexError

__all__ = ["Problem", "RunRecord", "read_all"]

_RESULT = "result.json"
_CONFIG = "config.yaml"
_NEEDED = ("kept", "total", "test_accuracy")


@dataclass(frozen=True)
class RunRecord:
    """One finished run, as its folder tells it.

    Attributes:
        folder: The run folder.
        config: The settings, those in mappings of options with dotted names: ``method_options: {redraw: true}`` is
            ``method_options.redraw``.
        result: The content of ``result.json``.
        environment: The content of ``environment.json`` with dotted names; empty if there is none.
        epochs: One row an epoch, in order.
        layers: Kept and all weights of each pruned parameter; empty for a dense run.
    """

    folder: Path
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    environment: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]
    layers: Mapping[str, tuple[int, int]]

    @property
    def method(self) -> str:
        """Name of the scorer, or ``dense``."""
        return str(self.config["method"])

    @property
    def pruned(self) -> bool:
        """Whether anything was removed."""
        return self.method != "dense"

    @property
    def sparsity(self) -> float:
        """The sparsity that was asked for; 0 for a dense run."""
        return float(self.config["sparsity"]) if self.pruned else 0.0

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.config["seed"])


@dataclass(frozen=True)
class Problem:
    """A run folder that the tables leave out.

    Attributes:
        folder: The run folder.
        reason: Why it is left out.
    """

    folder: Path
    reason: str


class _UnreadableError(Exception):
    """The reason why a folder is left out."""


def read_all(folders: Sequence[Path]) -> tuple[list[RunRecord], list[Problem]]:
    """Finds and reads every run in or below some folders.

    Args:
        folders: Run folders, or folders that contain run folders at any depth.

    Returns:
        The finished runs and the runs left out, each in order of their folders.

    Raises:
        InvalidInput: If a folder does not exist or no finished run is found.
    """
    records: list[RunRecord] = []
    problems: list[Problem] = []
    for folder in _find(folders):
        read = _read_or_explain(folder)
        if isinstance(read, Problem):
            problems.append(read)
        else:
            records.append(read)
    if records:
        return records, problems
    places = ", ".join(str(folder) for folder in folders) or "nothing"
    if not problems:
        raise InvalidInput(f"no run found in {places}: a run folder holds {_CONFIG} and {_RESULT}")
    raise InvalidInput(f"no finished run in {places}: {problems[0].folder.name}: {problems[0].reason}")


def _find(folders: Iterable[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InvalidInput(f"no such folder: {folder}")
        marks = [path for name in (_RESULT, _CONFIG) for path in folder.rglob(name)]
        for path in sorted({mark.parent for mark in marks}):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _read_or_explain(folder: Path) -> RunRecord | Problem:
    try:
        return _read(folder)
    except _UnreadableError as error:
        return Problem(folder, str(error))


def _read(folder: Path) -> RunRecord:
    config = _read_config(folder / _CONFIG)
    epochs = _read_lines(folder / "metrics.jsonl")
    if not (folder / _RESULT).exists():
        raise _UnreadableError(f"not finished: {len(epochs)} of {config.get('epochs', '?')} epochs trained")
    result = _read_json(folder / _RESULT)
    status = result.get("status")
    if status != "done":
        raise _UnreadableError(f"not finished: status {status!r}")
    missing = [name for name in _NEEDED if not isinstance(result.get(name), (int, float))]
    if missing:
        raise _UnreadableError(f"{_RESULT} holds no {', '.join(missing)}")
    environment = folder / "environment.json"
    return RunRecord(
        folder=folder,
        config=config,
        result=result,
        environment=_flat(_read_json(environment)) if environment.exists() else {},
        epochs=epochs,
        layers=_read_layers(folder / "mask.safetensors"),
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise _UnreadableError(f"{_CONFIG} is missing")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise _UnreadableError(f"{_CONFIG} cannot be read: {_first_line(error)}") from error
    if not isinstance(config, dict):
        raise _UnreadableError(f"{_CONFIG} holds no settings")
    missing = [name for name in ("method", "sparsity", "model", "data", "seed") if name not in config]
    if missing:
        raise _UnreadableError(f"{_CONFIG} holds no {', '.join(missing)}")
    options = {name: value for name, value in config.items() if name.endswith("_options") and isinstance(value, dict)}
    dotted = {f"{name}.{option}": value for name, values in options.items() for option, value in values.items()}
    return {name: value for name, value in config.items() if name not in options} | dotted


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise _UnreadableError(f"{path.name} cannot be read: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise _UnreadableError(f"{path.name} holds no object")
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (ValueError, OSError) as error:
        raise _UnreadableError(f"{path.name} cannot be read: {_first_line(error)}") from error


def _read_layers(path: Path) -> dict[str, tuple[int, int]]:
    if not path.exists():
        return {}
    from pathex.masks import Mask

    try:
        return dict(Mask.load(path).counts())
    except (PathexError, OSError) as error:
        raise _UnreadableError(f"{path.name} cannot be read: {_first_line(error)}") from error


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
