"""How a pass is ordered, cut into batches, and each batch into the pieces of several processes."""

import numpy as np
import torch

from pathex.errors import InvalidInput, check_integer


def epoch_seed(*numbers: int) -> int:
    """One seed in [0, 2**63) from several numbers of at least 0, such as the training's seed, epoch and process."""
    # SeedSequence mixes the numbers; their sum would give seed 0, epoch 1 the order of seed 1, epoch 0.
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator, on the CPU, of one epoch's order and augmentation, which follow from nothing else."""
    return torch.Generator().manual_seed(epoch_seed(seed, epoch))


def check_share(images: int, batch_size: int, share: tuple[int, int]) -> None:
    """Check that each process (its number, how many there are) gets an image of every whole batch."""
    rank, ranks = share
    if not 0 <= rank < ranks:
        raise InvalidInput(f"part must be the number of a process and the number of processes, got {share}")
    check_integer("batch_size", batch_size)
    if min(batch_size, images) < ranks:
        raise InvalidInput(
            f"batches of {min(batch_size, images)} images cannot be shared by {ranks} processes; allowed: at least one"
            " image for each process"
        )


def cut_batches(images: int, batch_size: int, least: int) -> list[range]:
    """Places of the images of each batch of a pass; a last batch of fewer than ``least`` joins the one before."""
    starts = list(range(0, images, batch_size))
    if len(starts) > 1 and images - starts[-1] < least:
        starts.pop()
    return [range(first, last) for first, last in zip(starts, [*starts[1:], images], strict=True)]


def share_of(batch: range, rank: int, ranks: int) -> range:
    """The contiguous piece of a batch that one of several processes sees; the first ones' may be larger by one."""
    least, larger = divmod(len(batch), ranks)
    first = rank * least + min(rank, larger)
    return batch[first : first + least + (rank < larger)]
