"""Measuring a training without holding up the device."""

import torch
from torch import Tensor

from pathex.train.stepping import Record

__all__ = ["Collected", "LossWatch"]

_MOST = 2**18
"""Numbers in the outputs that are collected; more are not worth the memory."""


class Collected:
    """Hands on the outputs of many steps at once: a metric costs as much for a few images as for many.

    Args:
        record: Receives outputs and targets, such as the ``update`` of a metric that counts images, in any batches.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._numbers = 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> None:
        """Take the outputs of a batch.

        Args:
            outputs: They must not change later.
            targets: Nor must these.
        """
        self._pairs.append((outputs, targets))
        self._numbers += outputs.numel()
        if self._numbers >= _MOST:
            self.flush()

    def clear(self) -> None:
        """Forget what was not handed on."""
        self._pairs, self._numbers = [], 0

    def flush(self) -> None:
        """Hand on everything."""
        pairs = self._pairs
        self.clear()
        if len(pairs) == 1:
            self._record(*pairs[0])
        elif pairs:
            outputs, targets = zip(*pairs, strict=True)
            self._record(torch.cat(outputs), torch.cat(targets))


class LossWatch:
    """Reads a number on the device; a GPU is not waited for, so that the number may be an older one.

    Args:
        total: The number, which changes in place.
    """

    def __init__(self, total: Tensor) -> None:
        self._total = total
        self._pinned = torch.zeros((), dtype=total.dtype, pin_memory=True) if total.is_cuda else None
        self._copied: torch.cuda.Event | None = None

    def read(self) -> float | None:
        """The number.

        Returns:
            On the CPU as it is now; on a GPU as it was at an earlier call, or None if that is not known yet.
        """
        if self._pinned is None:
            return float(self._total)
        if self._copied is not None and not self._copied.query():
            return None
        value = None if self._copied is None else float(self._pinned)
        self._pinned.copy_(self._total, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(self._total.device))
        return value
