"""From settings to a ticket: the network, the images that scores see, and the mask."""

import time
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from pathex.allocate import described
from pathex.converters import from_zeros
from pathex.data import PruningSet
from pathex.errors import PathexWarning
from pathex.mask_files import read_allocation, read_mask
from pathex.masks import Mask
from pathex.pruning import PruneResult, default_rounds, prune
from pathex.runs.config import TicketConfig
from pathex.tasks import Classification, build_classification

__all__ = ["OWN_ZEROS", "build_task", "find_ticket"]

# Methods defined on train-mode BatchNorm see batches of this size, as in the code they were published with.
_BATCH = 256

OWN_ZEROS = "zeros"
"""As ``start_mask``: the zeros of the network's own weights."""


def build_task(config: TicketConfig, validation: float = 0.0) -> Classification:
    """The network and the images of the settings.

    Args:
        config: The settings.
        validation: Fraction of the training images held out.

    Returns:
        The task.
    """
    return build_classification(
        config.model,
        config.data,
        seed=config.seed,
        weights=config.weights,
        validation=validation,
        model_options=config.model_options,
        data_options=config.data_options,
    )


def find_ticket(
    config: TicketConfig, task: Classification, images: PruningSet, on_round: Callable[[dict[str, Any]], object]
) -> tuple[PruneResult, float]:
    """Prune the network of a task where it lives.

    Args:
        config: The settings.
        task: The network.
        images: The pruning set.
        on_round: Receives {round, rounds, density} after each round.

    Returns:
        The result and the seconds it took.
    """
    rounds = config.rounds or default_rounds(config.method)
    allocation = read_allocation(config.allocation)
    started = time.monotonic()
    result = prune(
        task.model,
        config.method,
        sparsity=config.sparsity,
        data=list(zip(images.images.split(_BATCH), images.labels.split(_BATCH), strict=True)),
        rounds=rounds,
        allocation=allocation,
        ignore=config.ignore,
        prunable=config.prunable,
        mask=_start(config, task.model),
        min_per_layer=config.min_per_layer,
        budget=config.budget,
        schedule=config.schedule,
        seed=config.seed,
        memory=config.memory,
        strict=config.strict,
        progress=False,
        on_round=lambda row, mask: on_round({"round": row["round"], "rounds": rounds, "density": mask.density}),
        **config.method_options,
    )
    result.mask.metadata |= {"allocation": described(allocation), "start_mask": config.start_mask}
    return result, round(time.monotonic() - started, 3)


def _start(config: TicketConfig, model: nn.Module) -> Mask | None:
    if config.start_mask is None:
        return None
    if config.start_mask == OWN_ZEROS:
        mask = from_zeros(model, ignore=config.ignore, prunable=config.prunable)
        if mask.kept == mask.total:
            message = "start_mask 'zeros': no weight of the model is zero, so the mask keeps everything"
            warnings.warn(message, PathexWarning, stacklevel=2)
        return mask
    return read_mask(config.start_mask, model, ignore=config.ignore, prunable=config.prunable)
