"""One step of the optimizer: carried out as it is written, or captured once in a CUDA graph and replayed.

A small network spends most of a step on telling the GPU what to do. A captured step tells it once: forward pass, loss,
backward pass, optimizer and the hooks of a mask become one graph, which reads its batch from fixed buffers and its
learning rates from tensors, so that every replay does the same with other numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pathex.capturing import Capture, cuda_graph
from pathex.train.seeding import host_generators, same_generators, set_host_generators

__all__ = ["CAPTURES", "CapturedStep", "EagerStep", "Record", "Step", "obstacle"]

CAPTURES = ("auto", "always", "never")
"""Whether steps are captured; ``auto`` is wherever that is possible."""

Record = Callable[[Tensor, Tensor], object]
"""Receives outputs, without gradient, and targets of what a step has seen."""

_WARM_UP = 3
"""Steps before a capture: libraries choose their kernels and allocate what they keep."""


class Step(Protocol):
    """What the loop calls for each batch.

    Attributes:
        total: Sum of the loss over the images of this process since it was last set to zero, float64 ().
        images: Their number.
    """

    total: Tensor
    images: int

    def __call__(self, inputs: Tensor, targets: Tensor) -> None:
        """Carry out one step of the optimizer.

        Args:
            inputs: This process's share of a batch.
            targets: Its targets.
        """


def obstacle(fabric: Any, accumulate: int, companion: object) -> str | None:
    """Why the steps of a training cannot be captured.

    Args:
        fabric: The ``lightning_fabric.Fabric``.
        accumulate: Parts in which the gradient of a step is computed.
        companion: What changes beside the network, or None.

    Returns:
        The reason in a few words, or None if they can.
    """
    if fabric.device.type != "cuda":
        return "the device is no CUDA device"
    if fabric.world_size > 1:
        return "several processes share each step"
    if accumulate > 1:
        return "a step has several parts"
    if getattr(fabric.strategy.precision, "scaler", None) is not None:
        return "the scale of the loss decides about each step"
    return None if companion is None else "the mask moves while the network trains"


class EagerStep:
    """Carries out each step as it is written.

    Args:
        model: The network as Fabric runs it.
        optimizer: Its optimizer as Fabric runs it.
        loss: Mean loss of ``(outputs, targets)`` over the images.
        record: Receives outputs and targets.
        fabric: The ``lightning_fabric.Fabric``.
        layout: Layout of the inputs.
        accumulate: Parts in which the gradient of a step is computed.

    Attributes:
        total: Sum of the loss over the images of this process since it was last set to zero, float64 ().
        images: Their number.
    """

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
        self.model, self.optimizer, self.layout, self.record = model, optimizer, layout, record
        self.device: torch.device = fabric.device
        self.total = torch.zeros((), device=self.device, dtype=torch.float64)
        self.images = 0
        self._loss, self._fabric, self._accumulate = loss, fabric, accumulate

    def __call__(self, inputs: Tensor, targets: Tensor) -> None:
        """Carry out one step of the optimizer.

        Args:
            inputs: This process's share of a batch.
            targets: Its targets.
        """
        self.update(inputs, targets, self.record)
        self.images += len(inputs)

    def update(self, inputs: Tensor, targets: Tensor, record: Record) -> None:
        """What happens on the device: gradient, step, and the loss added to ``total``.

        Args:
            inputs: This process's share of a batch.
            targets: Its targets.
            record: Receives outputs and targets of each part.
        """
        self.optimizer.zero_grad()
        everyone = self._mean_share(len(inputs))
        number = self._parts(everyone)
        shares = [(inputs, targets)]
        if number > 1:
            shares = list(zip(inputs.tensor_split(number), targets.tensor_split(number), strict=True))
        for place, (part, wanted) in enumerate(shares, 1):
            with self._unsynchronised(place < number):
                outputs = self.model(part.contiguous(memory_format=self.layout))
                loss = self._loss(outputs, wanted)
                # Of one process's whole batch the mean is what is wanted.
                whole = everyone == len(part) if isinstance(everyone, int) else False
                self._fabric.backward(loss if whole else loss * (len(part) / everyone))
            self.total += loss.detach() * len(part)
            record(outputs.detach(), wanted)
        self.optimizer.step()

    def _mean_share(self, count: int) -> Tensor | int:
        """Images in the mean share of a batch: processes join gradients by their mean, as if all shares were equal."""
        if self._fabric.world_size == 1:
            return count
        images = torch.tensor(float(count), device=self.device, dtype=torch.float64)
        torch.distributed.all_reduce(images)  # Fabric's own leaves the dtype
        return images / self._fabric.world_size

    def _parts(self, images: Tensor | int) -> int:
        """Parts of a step, from the mean number of images in a share: as many in every process, and none empty."""
        wanted = self._accumulate
        return 1 if wanted == 1 else max(1, min(wanted, int(images)))

    def _unsynchronised(self, wanted: bool) -> AbstractContextManager[None]:
        if self._fabric.world_size == 1:
            return nullcontext()
        context: AbstractContextManager[None] = self._fabric.no_backward_sync(self.model, enabled=wanted)
        return context


class CapturedStep:
    """Captures the step of the first batch, and replays it for every batch of the same shape.

    Any other batch, such as a smaller last one, is carried out as it is written; so are all where the capture fails.
    Warming up and capturing leave the network, its optimizer and the random generators as they were.

    Args:
        eager: The step, of one part and one process.
        optimizer: Its optimizer, without Fabric, on a GPU with ``fused=True``: the others read the rate on the host.
        tell: Receives the reason if the step cannot be captured.
        capture: How it is captured.

    Attributes:
        captured: Whether a captured step is there.
    """

    def __init__(
        self,
        eager: EagerStep,
        optimizer: Optimizer,
        *,
        tell: Callable[[str], object],
        capture: Capture = cuda_graph,
    ) -> None:
        self._eager, self._optimizer, self._tell, self._capture = eager, optimizer, tell, capture
        self.total = eager.total
        # What the fused optimizer reads on a GPU is of single precision.
        kind = torch.float32 if eager.device.type == "cuda" else torch.float64
        self._rates = [torch.zeros((), device=eager.device, dtype=kind) for _ in optimizer.param_groups]
        self._known = [0.0] * len(self._rates)
        self._shapes: tuple[Any, ...] | None = None
        self._inputs = self._targets = self._outputs = torch.empty(0)
        self._replay: Callable[[], object] | None = None

    @property
    def captured(self) -> bool:
        """Whether a captured step is there."""
        return self._replay is not None

    @property
    def images(self) -> int:
        """Images of this process since it was last set to zero."""
        return self._eager.images

    @images.setter
    def images(self, number: int) -> None:
        self._eager.images = number

    def __call__(self, inputs: Tensor, targets: Tensor) -> None:
        """Carry out one step of the optimizer.

        Args:
            inputs: A batch.
            targets: Its targets.
        """
        shapes = (inputs.shape, inputs.dtype, targets.shape, targets.dtype)
        if self._shapes is None:
            self._shapes = shapes
            self._prepare(inputs, targets)
        if self._replay is None or shapes != self._shapes:
            self._eager(inputs, targets)
            return
        self._inputs.copy_(inputs)
        self._targets.copy_(targets)
        self._set_rates()
        self._replay()
        self.images += len(inputs)
        # The next replay writes over the outputs, and whoever measures may do so later.
        self._eager.record(self._outputs.clone(), targets)

    def _prepare(self, inputs: Tensor, targets: Tensor) -> None:
        self._inputs = inputs.clone(memory_format=self._eager.layout)
        self._targets = targets.clone()
        self._set_rates()
        kept = _Kept(self._eager.model, self._optimizer, self.total)
        reason = None
        try:
            with _beside(self._eager.device):
                for _ in range(_WARM_UP):
                    self._work()
            reason = kept.frozen()
            if reason is None:
                self._replay = self._capture(self._work, self._eager.device)
        except Exception as error:  # a step that cannot be captured fails in whatever way its kernels do
            self._replay = None
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        finally:
            kept.restore()
        if reason is not None:
            self._tell(reason)

    def _work(self) -> None:
        with self._rates_in_tensors():
            self._eager.update(self._inputs, self._targets, self._keep)

    def _keep(self, outputs: Tensor, _: Tensor) -> None:
        self._outputs = outputs

    def _set_rates(self) -> None:
        for place, group in enumerate(self._optimizer.param_groups):
            if group["lr"] != self._known[place]:
                self._known[place] = group["lr"]
                self._rates[place].fill_(group["lr"])

    @contextmanager
    def _rates_in_tensors(self) -> Iterator[None]:
        """The optimizer keeps plain numbers, as schedules and checkpoints expect, but for the time of a step."""
        groups = self._optimizer.param_groups
        plain = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, rate in zip(groups, plain, strict=True):
                group["lr"] = rate


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """On a GPU, a stream of its own: what comes before a capture must not be on the one that others use."""
    if device.type != "cuda":
        yield
        return
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)


class _Kept:
    """Everything that steps change, to be put back."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, total: Tensor) -> None:
        self._model, self._optimizer, self._total = model, optimizer, total
        self._buffers = dict(model.named_buffers())
        self._values = [(place, place.detach().clone()) for place in (*model.parameters(), total)]
        self._buffer_values = {name: buffer.clone() for name, buffer in self._buffers.items()}
        self._memory = {
            parameter: {name: value.clone() for name, value in entries.items() if isinstance(value, Tensor)}
            for parameter, entries in optimizer.state.items()
        }
        self._device = total.device
        self._host = host_generators()
        self._generator = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None

    def frozen(self) -> str | None:
        """What a replay would not do again, because it happens on the host; None if there is nothing."""
        for name, buffer in self._model.named_buffers():
            if buffer is not self._buffers.get(name):
                return f"buffer {name!r} is another tensor after each step"
        own, standard, arrays = same_generators(self._host, host_generators())
        if not (standard and arrays):
            return "the network draws random numbers outside torch"
        if self._generator is not None and not own:
            return "the network draws random numbers on the CPU"
        return None

    @torch.no_grad()
    def restore(self) -> None:
        for place, value in self._values:
            place.copy_(value)
        for name, buffer in self._model.named_buffers():
            if name in self._buffer_values:
                buffer.copy_(self._buffer_values[name])
        for parameter, entries in self._optimizer.state.items():
            known = self._memory.get(parameter, {})
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    # A momentum of zero is what the first step of SGD begins with.
                    value.copy_(known[name]) if name in known else value.zero_()
        self._optimizer.zero_grad()
        set_host_generators(self._host)
        if self._generator is not None:
            torch.cuda.set_rng_state(self._generator, self._device)
