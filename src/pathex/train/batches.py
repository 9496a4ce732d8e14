"""How a pass is cut into batches, and each batch into the pieces of several processes."""

from pathex.errors import InvalidInput, check_integer


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
    """Cut a pass into batches.

    Returns:
        Places of the images of each batch; a last batch of fewer than ``least`` joins the one before.

    Example:
        >>> cut_batches(9, 4, 2), cut_batches(10, 4, 2)
        ([range(0, 4), range(4, 9)], [range(0, 4), range(4, 8), range(8, 10)])
    """
    starts = list(range(0, images, batch_size))
    if len(starts) > 1 and images - starts[-1] < least:
        starts.pop()
    return [range(first, last) for first, last in zip(starts, [*starts[1:], images], strict=True)]


def share_of(batch: range, rank: int, ranks: int) -> range:
    """The piece of a batch that one of several processes sees.

    Returns:
        A contiguous piece; those of the first processes may be larger by one.

    Example:
        >>> [share_of(range(10, 17), rank, 3) for rank in range(3)]
        [range(10, 13), range(13, 15), range(15, 17)]
    """
    least, larger = divmod(len(batch), ranks)
    first = rank * least + min(rank, larger)
    return batch[first : first + least + (rank < larger)]
