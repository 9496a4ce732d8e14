"""From settings to a ticket: the network, the images that scores see, and the mask."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pathex.data import PruningSet
from pathex.errors import PathexWarning
from pathex.experiments.runs.config import RunConfig, TicketConfig
from pathex.experiments.runs.folder import Journal
from pathex.masks import Mask, from_zeros, read_mask
from pathex.pruning import PruneResult, prune, read_allocation, searches
from pathex.tasks import Task, build
from pathex.train import TrainOptions

DENSE = ("dense", "small-dense")
"""Methods that keep every weight."""

OWN_ZEROS = "zeros"
"""As ``start_mask``: the zeros of the network's own weights."""


@dataclass(frozen=True)
class Stage:
    """What the stages of one run share."""

    config: RunConfig
    folder: Path
    task: Task
    images: PruningSet | None
    fabric: Any
    journal: Journal
    total: int
    width: int | float | None = None


def build_task(config: TicketConfig, validation: float = 0.0) -> Task:
    """The network and the images of the settings."""
    names = ("seed", "weights", "model_options", "data_options", "task_options")
    options = {name: getattr(config, name) for name in names}
    return build(config.task, config.model, config.data, validation=validation, **options)


def pruning_seed(config: TicketConfig) -> int:
    """Seed of the choice of the pruning set."""
    return config.seed if config.pruning_seed is None else config.pruning_seed


def train_options(config: RunConfig) -> TrainOptions:
    """How the network of a run is trained."""
    names = {field.name for field in fields(TrainOptions)} & {field.name for field in fields(config)}
    chosen = {name: getattr(config, name) for name in names}
    return TrainOptions(**{**chosen, "milestones": tuple(config.milestones)})


def find_ticket(
    config: TicketConfig,
    task: Task,
    images: PruningSet,
    on_event: Callable[[str, dict[str, Any]], object],
    checkpoint: Path | None = None,
) -> tuple[PruneResult, float]:
    """Prune the network of a task where it lives; a search goes on from its checkpoint, and the caller removes it."""
    started, searching = time.monotonic(), searches(config.method)

    def told(row: dict[str, Any], mask: Mask) -> None:
        on_event("prune_round", {"round": row["reached"], "rounds": row["rounds"], "density": mask.density})

    result = prune(
        task.model,
        config.method,
        data=task.scoring_batches(images),
        rounds=config.rounds,
        mask=start_mask(config, task),
        schedule=config.schedule,
        on_round=None if searching else told,
        on_step=lambda step, steps: on_event("search_step", {"step": step, "steps": steps}),
        checkpoint=checkpoint,
        **prune_options(config, task),
        **config.method_options,
    )
    result.mask.metadata["start_mask"] = config.start_mask
    return result, round(time.monotonic() - started, 3)


def prune_options(config: TicketConfig, task: Task) -> dict[str, Any]:
    """What ``pathex.prune`` takes from the settings alone."""
    names = ("sparsity", "prunable", "min_per_layer", "min_per_output", "budget", "count", "structure", "narrow")
    return {
        **{name: getattr(config, name) for name in (*names, "rounding", "seed", "memory", "strict")},
        "allocation": read_allocation(config.allocation),
        "ignore": (*config.ignore, *task.unprunable),
        "progress": False,
    }


def start_mask(config: TicketConfig, task: Task) -> Mask | None:
    """The mask that pruning starts from."""
    if config.start_mask is None:
        return None
    ignore = (*config.ignore, *task.unprunable)
    if config.start_mask != OWN_ZEROS:
        return read_mask(config.start_mask, task.model, ignore=ignore, prunable=config.prunable)
    mask = from_zeros(task.model, ignore=ignore, prunable=config.prunable)
    if mask.kept == mask.total:
        message = "start_mask 'zeros': no weight of the model is zero, so the mask keeps everything"
        warnings.warn(message, PathexWarning, stacklevel=2)
    return mask
