"""Random numbers that follow from the seed of the training and the number of the epoch, and from nothing else."""

import random
from typing import Any

import numpy as np
import torch

__all__ = ["epoch_generator", "epoch_seed", "host_generators", "same_generators", "set_host_generators"]


def epoch_seed(*numbers: int) -> int:
    """One seed from several numbers, such as the seed of the training, the epoch and the process.

    Args:
        *numbers: Numbers of at least 0.

    Returns:
        A seed in [0, 2**63).
    """
    # SeedSequence mixes the numbers; their sum would give seed 0, epoch 1 the order of seed 1, epoch 0.
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator of one epoch's order and augmentation.

    It depends on nothing else, so that an epoch started again from its beginning is the same bit for bit.

    Args:
        seed: Seed of the training.
        epoch: Number of the epoch.

    Returns:
        A generator on the CPU.
    """
    return torch.Generator().manual_seed(epoch_seed(seed, epoch))


def host_generators() -> tuple[Any, ...]:
    """Where the random generators stand that a process has once: of torch on the CPU, of Python and of numpy.

    Returns:
        Their states, in this order.
    """
    return torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 - networks may use it


def set_host_generators(states: tuple[Any, ...]) -> None:
    """Put the generators of the process where they stood.

    Args:
        states: What :func:`host_generators` returned.
    """
    own, standard, arrays = states
    torch.set_rng_state(own)
    random.setstate(standard)
    np.random.set_state(arrays)  # noqa: NPY002


def same_generators(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[bool, ...]:
    """Whether generators stand where they stood.

    Args:
        first: What :func:`host_generators` returned.
        second: What it returned at another time.

    Returns:
        For torch on the CPU, Python and numpy.
    """
    arrays = all(np.array_equal(one, other) for one, other in zip(first[2], second[2], strict=True))
    return torch.equal(first[0], second[0]), first[1] == second[1], arrays
