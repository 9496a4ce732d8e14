"""The name of a run's folder, which follows from its settings."""

import hashlib
import json
import re
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from pathex.experiments.runs.config import RunConfig

PLACE = ("out", "device", "logger")
_PRUNING_SET = ("rounds", "images_per_class", "pruning_seed")
_PRUNING = (
    *_PRUNING_SET,
    "sparsity",
    "allocation",
    "ignore",
    "prunable",
    "start_mask",
    "min_per_layer",
    "budget",
    "schedule",
    "sanity",
    "dynamic",
    "dynamic_options",
    "method_options",
    "memory",
    "strict",
)
WITHOUT_EFFECT = MappingProxyType(
    {
        "dense": _PRUNING,
        "small-dense": tuple({*_PRUNING} - {"sparsity", "ignore", "prunable", "method_options"}),
        "imp": _PRUNING_SET,
        "magnitude-after-training": _PRUNING_SET,
    }
)
"""Settings that decide nothing, by method."""


def settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide a run's numbers, as plain values."""
    values = asdict(config)
    without = WITHOUT_EFFECT.get(config.method, ())
    values.update({name: value for name, value in asdict(RunConfig()).items() if name in without})
    if config.method == "dense":
        values["sparsity"] = 0.0
    for name in PLACE:
        del values[name]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def run_name(config: RunConfig) -> str:
    """Name of the run's folder: method, model, data, sparsity, and a hash of the settings that are not the default.

    Args:
        config: Settings of the run.

    Returns:
        A name of letters, digits, dots, hyphens and underscores.

    Example:
        >>> run_name(RunConfig(method="px", sparsity=0.982, data="cifar10"))
        'px-resnet20-cifar10-s0.982-33076f1e'
    """
    defaults, values = settings(RunConfig()), settings(config)
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
    parts = (re.sub(r":.*[/\\]", ":", part) for part in (config.method, config.model, config.data))
    readable = "-".join(re.sub(r"[^A-Za-z0-9.-]+", "_", part).strip("_.")[-40:] for part in parts)
    return f"{readable}-s{values['sparsity']:.6g}-{digest}"
