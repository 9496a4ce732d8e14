"""Random numbers that follow from the seed of the training and the number of the epoch, and from nothing else."""

import numpy as np
import torch


def epoch_seed(*numbers: int) -> int:
    """One seed in [0, 2**63) from several numbers of at least 0, such as the training's seed, epoch and process."""
    # SeedSequence mixes the numbers; their sum would give seed 0, epoch 1 the order of seed 1, epoch 0.
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator, on the CPU, of one epoch's order and augmentation, which follow from nothing else."""
    return torch.Generator().manual_seed(epoch_seed(seed, epoch))
