"""One step of the optimizer."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

Record = Callable[[Tensor, Tensor], object]

_MOST = 2**18  # numbers in the outputs that are collected; more are not worth the memory


class Step:
    """The gradient of a batch, in parts if wanted and over all processes, and the optimizer's step."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        loss: Callable[[Tensor, Tensor], Tensor],
        record: Record,
        *,
        fabric: Any,
        layout: torch.memory_format,
        accumulate: int = 1,
    ) -> None:
        self._model, self._optimizer, self._loss, self._record = model, optimizer, loss, record
        self._fabric, self._layout, self._accumulate = fabric, layout, accumulate
        self.total = torch.zeros((), device=fabric.device, dtype=torch.float64)
        self.images = 0

    def __call__(self, inputs: Tensor, targets: Tensor) -> None:
        """Carry out one step with this process's share of a batch."""
        self._optimizer.zero_grad()
        mean = self._mean_share(len(inputs))
        # As many parts in every process, and none empty.
        parts = max(1, min(self._accumulate, int(mean))) if self._accumulate > 1 else 1
        pieces = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
        for number, (part, wanted) in enumerate(pieces, 1):
            with self._unsynchronised(number < parts):
                outputs = self._model(part.contiguous(memory_format=self._layout))
                loss = self._loss(outputs, wanted)
                whole = isinstance(mean, int) and mean == len(part)
                self._fabric.backward(loss if whole else loss * (len(part) / mean))
            self.total += loss.detach() * len(part)
            self._record(outputs.detach(), wanted)
        self._optimizer.step()
        self.images += len(inputs)

    def _mean_share(self, count: int) -> Tensor | int:
        """Images in the mean share of a batch: processes join gradients by their mean, as if all shares were equal."""
        if self._fabric.world_size == 1:
            return count
        images = torch.tensor(float(count), device=self.total.device, dtype=torch.float64)
        torch.distributed.all_reduce(images)  # Fabric's own leaves the dtype
        return images / self._fabric.world_size

    def _unsynchronised(self, wanted: bool) -> AbstractContextManager[None]:
        if self._fabric.world_size == 1:
            return nullcontext()
        context: AbstractContextManager[None] = self._fabric.no_backward_sync(self._model, enabled=wanted)
        return context


class Collected:
    """Hands on the outputs of many steps at once: a metric costs as much for a few images as for many."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, outputs: Tensor, targets: Tensor) -> None:
        """Take the outputs and targets of a batch, which must not change later."""
        self._pairs.append((outputs, targets))
        if sum(pair[0].numel() for pair in self._pairs) >= _MOST:
            self.flush()

    def flush(self) -> None:
        """Hand on everything."""
        pairs, self._pairs = self._pairs, []
        if len(pairs) == 1:
            self._record(*pairs[0])
        elif pairs:
            self._record(*(torch.cat(each) for each in zip(*pairs, strict=True)))
