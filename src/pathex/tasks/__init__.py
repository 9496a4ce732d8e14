"""What a network is trained to do: what it is built from, its loss, and how it is measured."""

import importlib
from types import MappingProxyType
from typing import Any

from pathex.errors import UnknownName
from pathex.tasks._task import LOSSES, Load, Task
from pathex.tasks.classification import Classification, build_classification

__all__ = ["LOSSES", "TASKS", "Classification", "Load", "Task", "build", "build_classification"]

TASKS = ("auto", "classification", "segmentation", "transfer")
"""Tasks by name; ``auto`` follows from the data."""

_BUILDERS = MappingProxyType(
    {
        "classification": ("classification", "build_classification"),
        "segmentation": ("segmentation", "build_segmentation"),
        "transfer": ("transfer", "build_transfer"),
    }
)
_SEGMENTATION_DATA = frozenset({"voc2012"})


def build(task: str, model: str, data: str, **options: Any) -> Task:
    """Load the data and build the network of a task.

    Args:
        task: One of :data:`TASKS`.
        model: Name of a model.
        data: Name of a data set.
        **options: ``seed``, ``weights``, ``validation``, ``model_options``, ``data_options``, ``task_options`` and
            ``load_data``; see :func:`build_classification`.

    Returns:
        The task; nothing is written.
    """
    module, builder = _BUILDERS[kind(task, data)]
    built: Task = getattr(importlib.import_module(f"pathex.tasks.{module}"), builder)(model, data, **options)
    return built


def kind(task: str, data: str) -> str:
    """The task that ``auto`` stands for.

    Args:
        task: One of :data:`TASKS`.
        data: Name of a data set.

    Returns:
        A task other than ``auto``.

    Raises:
        UnknownName: If there is no such task.
    """
    if task not in TASKS:
        raise UnknownName("task", task, TASKS)
    if task != "auto":
        return task
    return "segmentation" if data in _SEGMENTATION_DATA else "classification"
