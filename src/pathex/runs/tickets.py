"""From settings to a ticket: the network, the images that scores see, and the mask."""

import time
from collections.abc import Callable
from typing import Any

from pathex.data import PruningSet
from pathex.pruning import PruneResult, default_rounds, prune
from pathex.runs.config import TicketConfig
from pathex.tasks import Classification, build_classification

__all__ = ["build_task", "find_ticket"]

# Methods defined on train-mode BatchNorm see batches of this size, as in the code they were published with.
_BATCH = 256


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
    started = time.monotonic()
    result = prune(
        task.model,
        config.method,
        sparsity=config.sparsity,
        data=list(zip(images.images.split(_BATCH), images.labels.split(_BATCH), strict=True)),
        rounds=rounds,
        allocation=config.allocation,
        ignore=config.ignore,
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
    return result, round(time.monotonic() - started, 3)
