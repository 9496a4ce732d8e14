"""The dense network that is as small as a ticket: what a sparse network has to be better than."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pathex.analysis import count, matching_width
from pathex.errors import InvalidInput, check_name
from pathex.experiments.runs.config import RunConfig, read_options
from pathex.masks import prunable_weights, read_mask
from pathex.tasks import Classification, Task, kind

OPTIONS: Mapping[str, Any] = MappingProxyType({"match": "parameters", "mask": None})
"""Options and their defaults.

``match``: ``parameters`` or ``multiply-adds``, of which the small network has no more than the ticket. ``mask``: file
of the ticket's mask; null is a ticket of the run's sparsity with the same density in every layer.
"""

# A run's sparsity is what reports draw it at, so that a mask has to have it too.
_TOLERANCE = 5e-4


def check_options(config: RunConfig) -> None:
    """Refuse settings that cannot be used."""
    if (task := kind(config.task, config.data)) != "classification":
        raise InvalidInput(f"task {task!r} with method 'small-dense'; allowed: classification")
    if config.weights is not None:
        raise InvalidInput(
            f"weights {config.weights!r} with method 'small-dense': no narrower network has them; allowed: none"
        )
    chosen = read_options(config, OPTIONS)
    check_name("match", chosen["match"], ("parameters", "multiply-adds"))
    if chosen["mask"] is not None and not (isinstance(chosen["mask"], str) and Path(chosen["mask"]).is_file()):
        raise InvalidInput(f"mask {chosen['mask']!r} of 'small-dense' is no file; allowed: a mask file, or none")


def shrunk(config: RunConfig, task: Task) -> RunConfig:
    """The settings with the width at which the dense network costs no more than a ticket of the whole one."""
    assert isinstance(task, Classification)
    chosen = {**OPTIONS, **config.method_options}
    shape = tuple(task.example.shape[1:])
    counts = count(task.model, shape)
    dense = {"parameters": counts.parameters(), "multiply_adds": counts.multiply_adds()}
    ignore = (*config.ignore, *task.unprunable)
    weights = prunable_weights(task.model, ignore=ignore, prunable=config.prunable)
    if chosen["mask"] is None:
        saved = {
            "parameters": config.sparsity * sum(weight.numel() for weight in weights.values()),
            "multiply_adds": config.sparsity * sum(counts.products[name] for name in weights),
        }
        target = {name: round(value - saved[name]) for name, value in dense.items()}
    else:
        mask = read_mask(chosen["mask"], task.model, ignore=ignore, prunable=config.prunable)
        if abs(mask.sparsity - config.sparsity) > _TOLERANCE:
            raise InvalidInput(
                f"sparsity is {config.sparsity:g}, and mask {chosen['mask']!r} has {mask.sparsity:.6g}; "
                "allowed: the sparsity of the mask"
            )
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
