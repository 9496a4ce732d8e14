"""Which classes: a data set restricted to some of them, and seeded splits into tasks."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from pathex.errors import InvalidInput, check_integer, reason

_SHOWN = 5


def task_splits(num_classes: int, tasks: int, seed: int = 0) -> list[list[int]]:
    """Split classes into tasks at random; the draw neither reads nor moves the global generator.

    Returns:
        For each task ``num_classes // tasks`` classes in rising order; no class is in two tasks, and what is left over
        is in none. Numbers that cannot be used raise `pathex.errors.InvalidInput`.

    Example:
        >>> task_splits(7, 3, seed=0)
        [[0, 4], [3, 5], [2, 6]]
    """
    check_integer("num_classes", num_classes)
    check_integer("option 'tasks'", tasks, 1, num_classes)
    check_integer("option 'task_seed'", seed, 0, 2**63 - 1)
    order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed)).tolist()
    size = num_classes // tasks
    return [sorted(order[task * size : (task + 1) * size]) for task in range(tasks)]


def choose_classes(
    names: Sequence[str],
    *,
    classes: Any = None,
    tasks: int | None = None,
    task: int | None = None,
    task_seed: int | None = None,
) -> list[int]:
    """Numbers of the classes that a data set is restricted to, in the order of their new labels; see ``load``."""
    entries: list[Any] = list(range(len(names))) if classes is None else _entries(classes)
    if all(isinstance(entry, list | tuple) for entry in entries):
        if tasks is not None or task_seed is not None:
            raise InvalidInput("options 'tasks' and 'task_seed' do not go with 'classes' that are split into tasks")
        return _numbers(entries[check_integer("option 'task'", task, 0, len(entries) - 1)], names)
    chosen = _numbers(entries, names)
    if tasks is not None:
        groups = task_splits(len(chosen), tasks, 0 if task_seed is None else task_seed)
        return [chosen[place] for place in groups[check_integer("option 'task'", task, 0, tasks - 1)]]
    if task is not None or task_seed is not None:
        raise InvalidInput("options 'task' and 'task_seed' need option 'tasks', or 'classes' with a list for each")
    return chosen


def _entries(classes: Any) -> list[Any]:
    if isinstance(classes, str | Path):
        classes = _read(Path(classes).expanduser())
    if not isinstance(classes, list | tuple):
        kind = type(classes).__name__
        raise InvalidInput(f"option 'classes' must be a list of class numbers or names, or a file of one, got {kind}")
    if not classes:
        raise InvalidInput("option 'classes' must name at least one class, got none")
    return list(classes)


def _read(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            return json.loads(text)
        if file.suffix in {".yaml", ".yml"}:
            return yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidInput(f"option 'classes': {str(file)!r} cannot be read ({reason(error)})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _numbers(entries: Sequence[Any], names: Sequence[str]) -> list[int]:
    chosen = [_number(entry, names) for entry in entries]
    twice = [number for number, times in Counter(chosen).items() if times > 1]
    if twice:
        raise InvalidInput(f"option 'classes' names class {names[twice[0]]!r} twice")
    return chosen


def _number(entry: Any, names: Sequence[str]) -> int:
    if isinstance(entry, str) and entry in names:
        return names.index(entry)
    if isinstance(entry, str) and entry.isdecimal():
        entry = int(entry)
    if isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < len(names):
        return entry
    shown = ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])
    raise InvalidInput(f"option 'classes': no class {entry!r}. Known: 0..{len(names) - 1} or {shown}")
