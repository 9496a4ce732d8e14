"""Refuse settings that cannot work before anything is written."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pathex import dynamic, schedule, scores
from pathex.choosing import BUDGETS
from pathex.data import AUGMENTATIONS, Augmentation
from pathex.errors import InvalidInput, UnknownName
from pathex.mask_files import read_allocation
from pathex.masks import Mask
from pathex.runs._rewinding import plan
from pathex.runs._small_dense import check_options
from pathex.runs._stages import DENSE, SANITY, TRAINED
from pathex.runs.config import RunConfig, TicketConfig
from pathex.runs.tickets import OWN_ZEROS
from pathex.tasks import LOSSES, kind
from pathex.train import check_logger, check_machine

__all__ = ["check_config", "check_ticket"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(least: int) -> tuple[Callable[[Any], bool], str]:
    return (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
        f"a whole number of at least {least}",
    )


_FRACTION: tuple[Callable[[Any], bool], str] = (
    lambda value: _is_number(value) and 0 <= value < 1,
    "a number in [0, 1)",
)
_POSITIVE: tuple[Callable[[Any], bool], str] = (lambda value: _is_number(value) and value > 0, "a number above 0")
_SEED: tuple[Callable[[Any], bool], str] = (
    lambda value: _integer(0)[0](value) and value < 2**63,
    "a whole number from 0 to 2**63 - 1",
)
_TICKET: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sparsity": _FRACTION,
    "rounds": (lambda value: value is None or _integer(1)[0](value), "a whole number of at least 1, or none"),
    "images_per_class": _integer(1),
    "min_per_layer": _integer(0),
    "seed": _SEED,
    "pruning_seed": (lambda value: value is None or _SEED[0](value), f"{_SEED[1]}, or none"),
}
_TRAINING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": _integer(0),
    "batch_size": _integer(1),
    "accumulate": _integer(1),
    "devices": _integer(0),
    "lr": _POSITIVE,
    "head_lr": (lambda value: value is None or _POSITIVE[0](value), "a number above 0, or none"),
    "momentum": _FRACTION,
    "weight_decay": (lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    "milestones": (
        lambda value: isinstance(value, tuple | list) and all(_is_number(part) and 0 < part < 1 for part in value),
        "a list of numbers in (0, 1)",
    ),
    "gamma": _POSITIVE,
    "label_smoothing": _FRACTION,
    "validation": _FRACTION,
}


def check_config(config: RunConfig) -> None:
    """Check every setting of a run that can be checked without the data.

    Args:
        config: Settings of a run.

    Raises:
        InvalidInput: If a setting is out of its range or names something unknown; the message has the name of the
            field, its value and what is allowed.
    """
    check_ticket(config, (*DENSE, *TRAINED))
    _check_ranges(config, _TRAINING)
    _check_augmentation(config)
    _check_name("loss", config.loss, LOSSES)
    _check_name("sanity", config.sanity, SANITY)
    _check_name("dynamic", config.dynamic, ("none", *dynamic.METHODS))
    for name in ("augment_options", "dynamic_options"):
        _check_plain(name, getattr(config, name))
    _check_dynamic(config)
    if config.method == "small-dense":
        check_options(config)
    elif config.method in TRAINED:
        plan(config)
        if config.rounds is not None:
            raise InvalidInput(
                f"rounds is {config.rounds} with method {config.method!r}, which has no rounds; allowed: none"
                + (" (its levels are an option: --method-options.levels)" if config.method == "imp" else "")
            )
    if config.label_smoothing and config.loss == "mse":
        raise InvalidInput(f"label_smoothing is {config.label_smoothing} with loss 'mse'; allowed: 0")
    if config.accumulate > config.batch_size:
        raise InvalidInput(
            f"accumulate is {config.accumulate}; allowed: at most the {config.batch_size} images of a batch"
        )
    check_logger(config.logger)
    if config.nesterov and config.momentum == 0:
        raise InvalidInput("nesterov is True with momentum 0; allowed: momentum above 0, or nesterov False")
    check_machine(
        config.device,
        config.precision,
        devices=config.devices,
        strategy=config.strategy,
        sync_batchnorm=config.sync_batchnorm,
    )
    if config.strategy == "fsdp":
        if config.dynamic != "none":
            raise InvalidInput(f"dynamic is {config.dynamic!r} with strategy 'fsdp'; allowed: none, or strategy ddp")
        if config.method in TRAINED or kind(config.task, config.data) == "transfer":
            raise InvalidInput(
                "strategy 'fsdp' with a mask found by training or with task 'transfer'; allowed: auto, ddp"
            )


def _check_dynamic(config: RunConfig) -> None:
    if config.method in DENSE:
        for name in ("dynamic", "sanity"):
            if (value := getattr(config, name)) != "none":
                raise InvalidInput(
                    f"{name} is {value!r} with method {config.method!r}, which has no mask; allowed: none"
                )
    if config.dynamic == "none":
        if config.dynamic_options:
            raise InvalidInput("dynamic_options are given and dynamic is 'none'; allowed: dynamic 'rigl' or 'set'")
        return
    if kind(config.task, config.data) == "transfer":
        raise InvalidInput(f"dynamic is {config.dynamic!r} with task 'transfer'; allowed: none")
    dynamic.check_options(config.dynamic_options)


def check_ticket(config: TicketConfig, others: Sequence[str] = ()) -> None:
    """Check every setting of a ticket that can be checked without the data.

    Args:
        config: The settings.
        others: Names that ``method`` may have beside those of the scorers.
    """
    _check_ranges(config, _TICKET)
    _check_method(config.method, others)
    _check_name("budget", config.budget, BUDGETS)
    _check_schedule(config)
    _check_allocation(config.allocation)
    _check_start_mask(config.start_mask)
    check_machine(config.device)
    kind(config.task, config.data)
    scores.parse_memory(config.memory)
    for name in ("model_options", "data_options", "task_options", "method_options"):
        _check_plain(name, getattr(config, name))
    if config.method not in (*DENSE, *TRAINED):
        method = scores.resolve(config.method)
        if isinstance(method, scores.Method):
            method.check(config.method_options)
        else:
            scores.check_call(method, config.method_options)


def _check_schedule(config: TicketConfig) -> None:
    name, _ = schedule.read_schedule(config.schedule)
    schedule.check_options(config.schedule, config.method_options)
    if name == schedule.ADAPTIVE and config.method in TRAINED:
        raise InvalidInput(
            f"schedule is {config.schedule!r} with method {config.method!r}, whose levels are planned ahead; "
            "allowed: exponential, linear"
        )


def _check_method(method: str, others: Sequence[str]) -> None:
    if ":" in method or method in others:
        return
    try:
        scores.find(method)
    except UnknownName:
        raise UnknownName("method", method, (*others, *scores.names())) from None


def _check_augmentation(config: RunConfig) -> None:
    if kind(config.task, config.data) == "segmentation":
        _check_name("augment", config.augment, ("auto", "none", "scale-crop"))
        return
    _check_name("augment", config.augment, ("auto", *AUGMENTATIONS))
    if config.augment != "auto":
        Augmentation.of(config.augment, config.augment_options)


def _check_ranges(config: TicketConfig, rules: Mapping[str, tuple[Callable[[Any], bool], str]]) -> None:
    for name, (holds, allowed) in rules.items():
        if not holds(getattr(config, name)):
            value = getattr(config, name)
            hint = f" (did you mean {value / 100:g}?)" if name == "sparsity" and _is_number(value) and value > 1 else ""
            raise InvalidInput(f"{name} is {value!r}; allowed: {allowed}{hint}")


def _check_allocation(allocation: Any) -> None:
    if isinstance(allocation, str):
        allocation = read_allocation(allocation)
    if isinstance(allocation, str | Mask):
        return
    wrong = [name for name, density in allocation.items() if not (_is_number(density) and 0 <= density <= 1)]
    if wrong:
        raise InvalidInput(f"allocation of {wrong[0]!r} is {allocation[wrong[0]]!r}; allowed: a density in [0, 1]")


def _check_start_mask(start_mask: Any) -> None:
    if start_mask not in (None, OWN_ZEROS) and not Path(start_mask).is_file():
        raise InvalidInput(f"start_mask {start_mask!r} is no file; allowed: a file, {OWN_ZEROS!r} or none")


def _check_plain(name: str, options: dict[str, Any]) -> None:
    try:
        json.dumps(options)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"{name} has a value that a file cannot hold ({error}); allowed: text, numbers, lists"
        ) from None


def _check_name(kind: str, name: str, allowed: Sequence[str]) -> None:
    if name not in allowed:
        raise UnknownName(kind, name, allowed)
