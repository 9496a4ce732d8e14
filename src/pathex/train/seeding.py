"""Random numbers that follow from the seed of the training and the number of the epoch, and from nothing else."""

import numpy as np
import torch

__all__ = ["epoch_generator", "epoch_seed"]


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
