"""The optimizer, and its learning rate over the epochs."""

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

from pathex.train.options import TrainOptions


def milestone_epochs(epochs: int, milestones: Sequence[float]) -> list[int]:
    """The number of finished epochs at which the rate falls, in order; the first epoch always has the full rate."""
    return sorted(max(1, math.floor(fraction * epochs + 0.5)) for fraction in milestones)


def make_optimizer(
    groups: list[dict[str, Any]], options: TrainOptions, *, fused: bool | None = None
) -> tuple[Optimizer, LRScheduler]:
    """The optimizer, and a schedule to step after epochs: of W of warm-up, epoch k has k / (W + 1) of the rate."""
    common: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay, "fused": fused}
    optimizer: Optimizer
    if options.optimizer == "adamw":
        optimizer = AdamW(groups, betas=(options.momentum, 0.999), **common)
    else:
        optimizer = SGD(groups, momentum=options.momentum, nesterov=options.nesterov, **common)
    epochs = options.epochs
    first = max(0, min(math.floor(options.warmup * epochs + 0.5), epochs - 1))
    rising = LinearLR(optimizer, 1 / (first + 1), total_iters=first) if first else None
    schedule: LRScheduler
    if options.lr_schedule == "cosine":
        schedule = CosineAnnealingLR(optimizer, max(1, epochs - first))
    else:
        falls = [number - first for number in milestone_epochs(epochs, options.milestones)]
        schedule = MultiStepLR(optimizer, falls, options.gamma)
    return optimizer, schedule if rising is None else SequentialLR(optimizer, [rising, schedule], [first])
