"""What a network is trained to do: what it is built from, its loss, and how it is measured."""

import importlib
from typing import Any

from pathex.errors import check_name
from pathex.tasks.classification import Classification
from pathex.tasks.task import LOSSES, Load, Setup, Task, initialised

__all__ = ["LOSSES", "TASKS", "Classification", "Load", "Task", "build", "initialised", "kind"]

TASKS = ("auto", "classification", "segmentation", "transfer")
"""Tasks by name; ``auto`` follows from the data. Each has a module with a function ``build``."""

_SEGMENTATION_DATA = frozenset({"voc2012"})


def build(task: str, model: str, data: str, **options: Any) -> Task:
    """Load the data and build the network of a task.

    The initial weights follow from the seed alone: the random state before the call plays no part and is restored.

    Args:
        task: One of `TASKS`.
        model: Name of a model.
        data: Name of a data set.
        **options: ``seed`` of initialization and of the validation split; ``weights`` to start from, None is random
            initialization; ``validation``, the fraction of the training images held out, in [0, 1); ``model_options``,
            ``data_options`` and ``task_options``; ``load_data``, which loads the data, None is ``pathex.data.load``.

            Options of ``segmentation``: ``crop``, the side of the window in pixels (513); ``evaluation``, ``full``
            (whole images by overlapping windows, the default) or ``crop``; ``stride`` of the windows of a full
            evaluation (two thirds of the crop).

            Options of ``transfer``: ``tasks``, the number of tasks, or a list of classes (numbers or names) for each,
            or a YAML or JSON file with one; ``task_seed`` of the split into a number of tasks (0); ``source``, the
            number of the task that the network is pruned on (0); ``targets``, numbers of those it then learns (all
            others); ``alpha``, the penalty of the ridge regression (1); ``head``, ``fixed`` or ``trained``.

    Returns:
        The task; nothing is written. An option, data or a network that cannot be used raises
        `pathex.errors.InvalidInput`.
    """
    module = importlib.import_module(f"pathex.tasks.{kind(task, data)}")
    built: Task = module.build(Setup(model, data, **options))
    return built


def kind(task: str, data: str) -> str:
    """The task that ``auto`` stands for, or the task itself."""
    check_name("task", task, TASKS)
    if task != "auto":
        return task
    return "segmentation" if data in _SEGMENTATION_DATA else "classification"
