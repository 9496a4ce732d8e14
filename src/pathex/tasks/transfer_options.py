"""The tasks of a transfer: which classes each has, on which the network is pruned and which it then learns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathex.data import ImageData, choose_classes, task_splits
from pathex.errors import InvalidInput, check_name, check_names, refusing
from pathex.files import read

HEADS = ("fixed", "trained")
"""What fine-tuning does to the head that ridge regression found."""


@dataclass(frozen=True)
class TransferOptions:
    """The options of the task: numbers of classes by task, tasks by number, and the penalty of the regression."""

    tasks: tuple[tuple[int, ...], ...]
    source: int
    targets: tuple[int, ...]
    alpha: float
    head: str


def transfer_options(given: Mapping[str, Any], data: ImageData) -> TransferOptions:
    """Check the options of the task; every task of the result is numbers of classes."""
    usual: dict[str, Any] = {"tasks": None, "task_seed": None, "source": 0, "targets": None}
    usual |= {"alpha": 1.0, "head": "fixed"}
    check_names("option of task 'transfer':", given, usual)
    tasks, task_seed, source, targets, alpha, head = {**usual, **given}.values()
    classes = _tasks(tasks, task_seed, data.classes)
    for number, own in enumerate(classes):
        _check_task(number, own, data)
    last = len(classes) - 1
    if not _are_numbers([source], last):
        raise _wrong("source", source, f"the number of a task, 0 to {last}")
    if targets is None and last == 0:
        raise _wrong("targets", None, "with a single task: [0]")
    chosen = [number for number in range(last + 1) if number != source] if targets is None else targets
    if not isinstance(chosen, list | tuple) or not _are_numbers(chosen, last):
        raise _wrong("targets", targets, f"different numbers of tasks, 0 to {last}, at least one")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise _wrong("alpha", alpha, "a number above 0")
    check_name("head", head, HEADS)
    return TransferOptions(classes, source, tuple(chosen), float(alpha), head)


def _tasks(tasks: Any, seed: Any, names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    if tasks is None:
        raise InvalidInput("task 'transfer' needs option 'tasks': their number, or a list of classes for each")
    if isinstance(tasks, int):
        return tuple(tuple(classes) for classes in task_splits(len(names), tasks, 0 if seed is None else seed))
    if seed is not None:
        raise InvalidInput("option 'task_seed' of task 'transfer' needs a number of 'tasks'; here they are listed")
    if isinstance(tasks, str):
        tasks = read(Path(tasks).expanduser(), f"option 'tasks': {tasks!r}", kind=".yaml")
    if not isinstance(tasks, list | tuple) or not tasks or not all(isinstance(task, list | tuple) for task in tasks):
        raise _wrong("tasks", tasks, "a number, a list of classes for each task, or a YAML or JSON file with one")
    return tuple(_chosen(number, classes, names) for number, classes in enumerate(tasks))


def _chosen(number: int, classes: Sequence[Any], names: Sequence[str]) -> tuple[int, ...]:
    with refusing(f"option 'tasks' of task 'transfer', task {number}: {{}}", InvalidInput):
        return tuple(choose_classes(names, classes=list(classes)))


def _check_task(number: int, classes: Sequence[int], data: ImageData) -> None:
    if len(classes) < 2:
        raise InvalidInput(f"option 'tasks' of task 'transfer': task {number} has {len(classes)} class, and needs two")
    for part in ("train", "test"):
        counts = torch.bincount(getattr(data, part).labels, minlength=data.num_classes)
        empty = [data.classes[label] for label in classes if not counts[label]]
        if empty:
            raise InvalidInput(f"data {data.name!r}: class {empty[0]!r} of task {number} has no {part} images")


def _are_numbers(values: Sequence[Any], last: int) -> bool:
    """Whether these are different numbers of tasks, at least one."""
    known = all(type(value) is int and 0 <= value <= last for value in values)
    return known and 0 < len(set(values)) == len(values)


def _wrong(option: str, value: Any, allowed: str) -> InvalidInput:
    return InvalidInput(f"option {option!r} of task 'transfer' is {value!r}; allowed: {allowed}")


def images_of(labels: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Numbers of the images of some classes, rising, and their labels: places in ``classes``, both int64 (M,)."""
    places = (labels[:, None] == torch.tensor(classes, dtype=labels.dtype)).nonzero()
    return places[:, 0], places[:, 1]
