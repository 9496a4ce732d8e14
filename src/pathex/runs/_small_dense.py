"""The dense network that is as small as a ticket: what a sparse network has to be better than."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pathex.counts import count
from pathex.errors import InvalidInput, UnknownName
from pathex.mask_files import read_mask
from pathex.matching import matching_width
from pathex.prunable import prunable_weights
from pathex.runs.config import RunConfig
from pathex.tasks import Classification, Task

__all__ = ["OPTIONS", "check_options", "shrunk"]

OPTIONS: Mapping[str, Any] = MappingProxyType({"match": "parameters", "mask": None})
"""Options and their defaults.

``match``: ``parameters`` or ``multiply-adds``, of which the small network has no more than the ticket. ``mask``: file
of the ticket's mask; null is a ticket of the run's sparsity with the same density in every layer.
"""

_MATCHES = ("parameters", "multiply-adds")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that cannot be used.

    Args:
        options: ``method_options`` of a run.

    Raises:
        UnknownName: If an option or its value is not known.
        InvalidInput: If the mask is no file.
    """
    for name in options:
        if name not in OPTIONS:
            raise UnknownName("option of 'small-dense'", name, OPTIONS)
    chosen = {**OPTIONS, **options}
    if chosen["match"] not in _MATCHES:
        raise UnknownName("match", chosen["match"], _MATCHES)
    if chosen["mask"] is not None and not Path(chosen["mask"]).is_file():
        raise InvalidInput(f"mask {chosen['mask']!r} of 'small-dense' is no file")


def shrunk(config: RunConfig, task: Task) -> RunConfig:
    """The settings with the width at which the dense network costs no more than a ticket of the whole one.

    Args:
        config: Settings of the run.
        task: The whole network, dense.

    Returns:
        The settings with another ``width`` among the options of the model.

    Raises:
        InvalidInput: If the task is not classification, or no such network is small enough.
    """
    if not isinstance(task, Classification):
        raise InvalidInput("method 'small-dense' is for classification")
    chosen = {**OPTIONS, **config.method_options}
    shape = tuple(task.example.shape[1:])
    counts = count(task.model, shape)
    dense = {"parameters": counts.parameters(), "multiply_adds": counts.multiply_adds()}
    weights = prunable_weights(task.model, ignore=task.unprunable)
    if chosen["mask"] is None:
        saved = {
            "parameters": config.sparsity * sum(weight.numel() for weight in weights.values()),
            "multiply_adds": config.sparsity * sum(counts.products[name] for name in weights),
        }
        target = {name: round(value - saved[name]) for name, value in dense.items()}
    else:
        mask = read_mask(chosen["mask"], task.model, ignore=task.unprunable)
        target = {"parameters": counts.parameters(mask), "multiply_adds": counts.multiply_adds(mask)}
    what = chosen["match"].replace("-", "_")
    options = {name: value for name, value in config.model_options.items() if name != "width"}
    width = matching_width(
        config.model,
        **{what: target[what]},
        num_classes=task.data.num_classes,
        in_channels=shape[0],
        image_size=(shape[1], shape[2]),
        **options,
    )
    return replace(config, model_options={**config.model_options, "width": width})
