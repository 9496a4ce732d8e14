"""The learning rate over the epochs: constant until milestones or a cosine, after a linear warm-up."""

import math
from collections.abc import Sequence
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

from pathex.errors import InvalidInput, check_integer, check_name

SCHEDULES = ("steps", "cosine")
"""What follows the warm-up."""


def milestone_epochs(epochs: int, milestones: Sequence[float]) -> list[int]:
    """The number of finished epochs at which the rate falls, in order; the first epoch always has the full rate."""
    return sorted(max(1, _nearest(fraction * epochs)) for fraction in milestones)


def lr_schedule(
    optimizer: Optimizer,
    epochs: int,
    name: Literal["steps", "cosine"] = "steps",
    *,
    warmup: float = 0.0,
    milestones: Sequence[float] = (0.5, 0.75),
    gamma: float = 0.1,
) -> LRScheduler:
    """A schedule of torch that is stepped after every epoch.

    With a warm-up of W epochs, epoch k of the first W has the fraction k / (W + 1) of the learning rate. ``cosine``
    then falls from the whole rate (the first epoch after the warm-up) towards 0, which it would reach after the last.

    Args:
        optimizer: The optimizer, with its learning rates.
        epochs: Epochs of the training, warm-up included.
        name: ``steps`` or ``cosine``.
        warmup: Fraction of the training, in [0, 1), of which the nearest number of epochs is W; never all of them.
        milestones: Fractions of the training at which ``steps`` multiplies the rate by ``gamma``.
        gamma: That factor.

    Returns:
        The schedule.

    Raises:
        UnknownName: If there is no schedule of the name.
        InvalidInput: If ``epochs`` or ``warmup`` is out of its range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = lr_schedule(optimizer, 4, "cosine", warmup=0.5)
        >>> for _ in range(4):
        ...     print(round(schedule.get_last_lr()[0], 3))
        ...     optimizer.step()
        ...     schedule.step()
        0.333
        0.667
        1.0
        0.5
    """
    check_name("lr_schedule", name, SCHEDULES)
    check_integer("epochs", epochs, 0)
    if not 0 <= warmup < 1:
        raise InvalidInput(f"warmup is {warmup}; allowed: a fraction of the training, in [0, 1)")
    first = max(0, min(_nearest(warmup * epochs), epochs - 1))
    rising = LinearLR(optimizer, 1 / (first + 1), total_iters=first) if first else None
    then: LRScheduler
    if name == "cosine":
        then = CosineAnnealingLR(optimizer, max(1, epochs - first))
    else:
        falls = [number - first for number in milestone_epochs(epochs, milestones)]
        then = MultiStepLR(optimizer, falls, gamma)
    return then if rising is None else SequentialLR(optimizer, [rising, then], [first])


def _nearest(number: float) -> int:
    return math.floor(number + 0.5)
