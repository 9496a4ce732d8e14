"""Refuse settings that cannot work before anything is written."""

from collections.abc import Sequence
from pathlib import Path

from pathex import models, scores
from pathex.data import AUGMENTATIONS, Augmentation
from pathex.errors import InvalidInput, UnknownName, check_name, import_callable
from pathex.experiments.runs.config import RunConfig, TicketConfig
from pathex.experiments.runs.conformity import check_types, conforms
from pathex.experiments.runs.engine import check_engine
from pathex.experiments.runs.rewind import plan
from pathex.experiments.runs.small_dense import check_options
from pathex.experiments.runs.stages import TRAINED
from pathex.experiments.runs.tickets import DENSE, OWN_ZEROS
from pathex.pruning import ADAPTIVE, check_together, dynamic, read_allocation, read_schedule, read_structure
from pathex.tasks import kind
from pathex.train import check_logger, check_machine, check_recipe


def check_config(config: RunConfig) -> None:
    """Check every setting of a run that can be checked without the data."""
    check_ticket(config, (*DENSE, *TRAINED))
    _check_augmentation(config)
    _check_dynamic(config)
    _check_recipe(config)
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
    check_engine(config)
    check_logger(config.logger)
    if config.nesterov and config.momentum == 0:
        raise InvalidInput("nesterov is True with momentum 0; allowed: momentum above 0, or nesterov False")
    several = {name: getattr(config, name) for name in ("devices", "strategy", "sync_batchnorm")}
    check_machine(config.device, config.precision, **several)
    if config.kernel_every and (config.devices != 1 or kind(config.task, config.data) != "classification"):
        raise InvalidInput("kernel_every is for task 'classification' on one device; allowed: 0, or these")
    if config.strategy == "fsdp" and config.dynamic != "none":
        raise InvalidInput(f"dynamic is {config.dynamic!r} with strategy 'fsdp'; allowed: none, or strategy ddp")
    if config.strategy == "fsdp" and (config.method in TRAINED or kind(config.task, config.data) == "transfer"):
        raise InvalidInput("strategy 'fsdp' with a mask found by training or with task 'transfer'; allowed: auto, ddp")


def _check_recipe(config: RunConfig) -> None:
    """Settings of the training that do not go together, or not with the task, the method or the machine."""
    for name in ("average", "remedy"):
        if (chosen := getattr(config, name)) != "none":
            check_recipe(name, chosen, getattr(config, f"{name}_options"))
        elif getattr(config, f"{name}_options"):
            raise InvalidInput(f"{name}_options are given and {name} is 'none'; allowed: another {name}")
    average, remedy = (None if each == "none" else each for each in (config.average, config.remedy))
    values = {**vars(config), "task": kind(config.task, config.data)}
    for name, chosen, other, value in (
        ("nesterov", True, "optimizer", "adamw"),
        ("mixup", config.mixup or None, "task", "segmentation"),
        ("cutmix", config.cutmix or None, "task", "segmentation"),
        ("average", average, "strategy", "fsdp"),
        ("remedy", remedy, "strategy", "fsdp"),
        ("remedy", remedy, "precision", "16-mixed"),  # its gradients are scaled, and steps are left out
        ("remedy", "sparseopt", "optimizer", "adamw"),  # which divides its factors out again
        *(("remedy", "sparseopt", "method", method) for method in DENSE),  # which have no mask
    ):
        if values[name] == chosen and values[other] == value:
            raise InvalidInput(f"{name} is {chosen!r} with {other} {value!r}; allowed: another {other}")


def _check_dynamic(config: RunConfig) -> None:
    if config.method in DENSE:
        for name in ("dynamic", "sanity"):
            if (own := getattr(config, name)) != "none":
                raise InvalidInput(f"{name} is {own!r} with method {config.method!r}, which has no mask; allowed: none")
    if config.dynamic == "none":
        if config.dynamic_options:
            raise InvalidInput("dynamic_options are given and dynamic is 'none'; allowed: dynamic 'rigl' or 'set'")
        return
    if kind(config.task, config.data) == "transfer":
        raise InvalidInput(f"dynamic is {config.dynamic!r} with task 'transfer'; allowed: none")
    dynamic.check_options(config.dynamic_options)


def check_ticket(config: TicketConfig, others: Sequence[str] = ()) -> None:
    """Check every setting of a ticket that can be checked without the data."""
    check_types(config)
    if ":" not in config.method and config.method not in others:
        try:
            scores.find(config.method)
        except UnknownName:  # the names of other packages are slow to list
            raise UnknownName("method", config.method, (*others, *scores.names())) from None
    schedule, _ = read_schedule(config.schedule)
    if schedule == ADAPTIVE and config.method in TRAINED:
        raise InvalidInput(
            f"schedule is {config.schedule!r} with method {config.method!r}, whose levels are planned ahead; "
            "allowed: exponential, linear"
        )
    allocation = read_allocation(config.allocation)
    for name, density in allocation.items() if isinstance(allocation, dict) else ():
        if not conforms(density, float) or not 0 <= density <= 1:
            raise InvalidInput(f"allocation of {name!r} is {density!r}; allowed: a density in [0, 1]")
    if config.start_mask not in (None, OWN_ZEROS) and not Path(config.start_mask).is_file():
        raise InvalidInput(f"start_mask {config.start_mask!r} is no file; allowed: a file, {OWN_ZEROS!r} or none")
    check_machine(config.device)
    kind(config.task, config.data)
    scores.parse_memory(config.memory)
    found = None if config.method in others else scores.resolve(config.method, config.method_options)
    if config.method not in DENSE:
        check_together(None if found is None else config.method, vars(config))
        read_structure(config.structure, config.sparsity)
    models.describe(config.model)
    if models.is_foreign(config.model):
        import_callable("model", config.model)


def _check_augmentation(config: RunConfig) -> None:
    segmentation = kind(config.task, config.data) == "segmentation"
    known = ("auto", "none", "scale-crop") if segmentation else ("auto", *AUGMENTATIONS)
    check_name("augment", config.augment, known)
    if config.augment != "auto" and not segmentation:
        Augmentation.of(config.augment, config.augment_options)
