"""Many tickets of one architecture trained at once on one device.

Each ticket has its network, its mask, its own random numbers and its own CUDA stream. A whole training step (batch from
the resident images, forward, backward, SGD, mask) is captured into one CUDA graph for each size of batch, so that the
host only says "again"; small networks then fill a large GPU together. Parameters are views of one flat tensor, which
makes the step of the optimizer five kernels. Without CUDA, or where the capture fails, the same step runs uncaptured.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from ticket_data import DeviceImages, batch_sizes, epoch_plan
from torch import Tensor, nn

from pathex import Mask
from pathex.errors import InvalidInput
from pathex.train.loop import milestone_epochs

__all__ = ["Options", "Trainer", "capture_all", "train"]

_WARM_UP = 3  # steps before a capture: libraries choose their kernels and allocate what they keep
_TEST_BATCH = 1000


@dataclass(frozen=True)
class Options:
    """What all tickets share.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in a step.
        lr: Learning rate at the start.
        momentum: Momentum of SGD.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: L2 penalty, on every parameter.
        milestones: Fractions of the training at which the learning rate is multiplied by ``gamma``.
        gamma: Factor of the learning rate at each milestone.
        augment: One of ``pathex.data.AUGMENTATIONS``.
        precision: ``float32`` (PyTorch's own choice: convolutions on a GPU round their factors to TF32) or ``bf16``
            (autocast).
    """

    epochs: int = 160
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    augment: str = "crop-flip"
    precision: str = "float32"

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch.

        Args:
            epoch: Its number, from 1.

        Returns:
            The rate.
        """
        passed = sum(epoch > end for end in milestone_epochs(self.epochs, self.milestones))
        return self.lr * self.gamma**passed


class Trainer:
    """One ticket in training.

    Args:
        model: The network, in float32; it belongs to the trainer from here on.
        mask: Weights that stay; None is all.
        seed: Seed of order and augmentation. Dropout and its like draw from the device's own generator, which all
            tickets share, and are not repeatable.
        images: The images.
        options: How to train.

    Raises:
        InvalidInput: If a trained parameter is not of float32.
    """

    def __init__(self, model: nn.Module, mask: Mask | None, seed: int, images: DeviceImages, options: Options) -> None:
        self.images, self.options, self.seed = images, options, seed
        self.device = images.device
        self.model = model.to(self.device).to(memory_format=torch.channels_last).train()
        self.sizes = batch_sizes(len(images.labels), options.batch_size)
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._flatten(mask)
        # Written by `begin`, read by every step.
        self._plan = torch.zeros(4, sum(self.sizes), dtype=torch.int64, device=self.device)
        self._minus_rate = torch.zeros((), device=self.device)
        self._position = torch.zeros((), dtype=torch.int64, device=self.device)
        self._loss = torch.zeros((), dtype=torch.float64, device=self.device)

    def _flatten(self, mask: Mask | None) -> None:
        """Make every trained parameter a view of one flat tensor; masks and momentum are flat alike."""
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        wrong = [name for name, p in named.items() if p.dtype != torch.float32]
        if wrong:
            raise InvalidInput(f"parameter {wrong[0]!r} must be of float32, is of {named[wrong[0]].dtype}")
        if mask is not None:
            mask.check(self.model)
        total = sum(p.numel() for p in named.values())
        self.parameters = list(named.values())
        self._weights = torch.empty(total, device=self.device)
        self._momentum, self._kept = torch.zeros_like(self._weights), torch.ones_like(self._weights)
        start = 0
        for name, parameter in named.items():
            stretch = slice(start, start + parameter.numel())
            start += parameter.numel()
            if mask is not None and name in mask:
                _shaped(self._kept[stretch], parameter.shape).copy_(mask[name])
            view = _shaped(self._weights[stretch], parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
        self._weights.mul_(self._kept)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """A copy of everything that training changes.

        Returns:
            Tensors by name.
        """
        buffers = dict(self.model.named_buffers())
        return copy.deepcopy({"weights": self._weights, "momentum": self._momentum, "buffers": buffers})

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state, in place: captured graphs see it.

        Args:
            state: What `state` returned.
        """
        self._weights.copy_(state["weights"])
        self._momentum.copy_(state["momentum"])
        for name, buffer in self.model.named_buffers():
            buffer.copy_(state["buffers"][name])

    # -- steps ---------------------------------------------------------------------------------------------------------

    def draw(self, epoch: int) -> Tensor:
        """What is random in an epoch; host work only.

        Args:
            epoch: Number of the epoch.

        Returns:
            The plan for `begin`.
        """
        plan = epoch_plan(self.sizes, self.seed, epoch, self.options.augment)
        return plan.pin_memory() if self.stream is not None else plan

    def begin(self, epoch: int, plan: Tensor) -> None:
        """Set everything for the first step of an epoch.

        Args:
            epoch: Number of the epoch.
            plan: Its plan.
        """
        with self._on_stream():
            self._plan.copy_(plan, non_blocking=True)
            self._minus_rate.fill_(-self.options.rate(epoch))
            self._position.zero_()
            self._loss.zero_()

    def step(self, size: int) -> None:
        """The next step of the epoch.

        Args:
            size: Images in its batch.
        """
        with self._on_stream():
            if size in self._graphs:
                self._graphs[size].replay()
            else:
                self._step(size)

    def _on_stream(self) -> Any:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def _step(self, size: int) -> None:
        where = self._position + torch.arange(size, device=self.device)
        images, labels = self.images.batch(self._plan.index_select(1, where))
        with self._autocast():
            outputs = self.model(images)
        loss = F.cross_entropy(outputs.float(), labels)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            gradient = torch.cat([_flat(g) for g in gradients]).add_(self._weights, alpha=self.options.weight_decay)
            # A removed weight is zero and so is its momentum, as both only ever gain what is masked here.
            gradient.mul_(self._kept)
            self._momentum.mul_(self.options.momentum).add_(gradient)
            if self.options.nesterov:
                gradient.add_(self._momentum, alpha=self.options.momentum)
            self._weights.addcmul_(gradient if self.options.nesterov else self._momentum, self._minus_rate)
            self._position.add_(size)
            self._loss.add_(loss.detach().double() * size)

    def _autocast(self) -> torch.autocast:
        # The cache would keep casts of one capture alive for the next.
        enabled = self.options.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def capture(self) -> None:
        """Capture the step for every size of batch. The ticket is as before; so it is if this fails."""
        assert self.stream is not None
        state = self.state()
        self.begin(1, self.draw(1))
        torch.cuda.synchronize(self.device)
        try:
            with torch.cuda.stream(self.stream):
                for size in sorted(set(self.sizes)):
                    for _ in range(_WARM_UP):
                        self._position.zero_()
                        self._step(size)
            torch.cuda.synchronize(self.device)
            # One pool for both graphs: they never run at the same time, and nothing of one is read by the other.
            pool = torch.cuda.graph_pool_handle()
            graphs = {}
            for size in sorted(set(self.sizes)):
                graphs[size] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graphs[size], pool=pool, stream=self.stream):
                    self._step(size)
            self._graphs = graphs
        finally:
            torch.cuda.synchronize(self.device)
            self.load(state)
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Forget the captured graphs; steps run uncaptured from here on."""
        self._graphs = {}

    # -- measurements --------------------------------------------------------------------------------------------------

    def mean_loss(self) -> float:
        """Mean training loss of the epoch so far. The device must have finished.

        Returns:
            The mean over images.
        """
        return float(self._loss) / max(1, int(self._position))

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of the test images that the network classifies right, in eval mode. The device must have finished.

        Returns:
            The share.
        """
        self.model.eval()
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        for start in range(0, len(self.images.test_labels), _TEST_BATCH):
            images, labels = self.images.test_batch(start, _TEST_BATCH)
            with self._autocast():
                right += (self.model(images).argmax(1) == labels).sum()
        self.model.train()
        return int(right) / len(self.images.test_labels)


def _shaped(flat: Tensor, shape: torch.Size) -> Tensor:
    """A stretch of a flat tensor in the shape of a parameter; kernels of convolutions lie channels last."""
    if len(shape) != 4:
        return flat.view(shape)
    return flat.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)


def _flat(tensor: Tensor) -> Tensor:
    return (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).reshape(-1)


def capture_all(trainers: Sequence[Trainer]) -> str | None:
    """Capture every ticket's step, or none's.

    Args:
        trainers: The tickets.

    Returns:
        Why the steps run uncaptured; None if they are captured.
    """
    for trainer in trainers:
        if trainer.stream is None:
            return "the device is no CUDA device"
        try:
            trainer.capture()
        except Exception as error:  # a step that cannot be captured fails in whatever way its kernels do
            for captured in trainers:
                captured.release()
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def train(
    trainers: Sequence[Trainer],
    *,
    done: int = 0,
    deadline: float | None = None,
    on_epoch: Callable[[int, float, list[float]], object] | None = None,
) -> int:
    """Train all tickets, step by step in turn.

    Args:
        trainers: The tickets; they share options and images.
        done: Epochs that are over.
        deadline: Time of ``time.monotonic`` after which no epoch is begun that would not end before it.
        on_epoch: Called after each epoch with its number, its seconds and each ticket's mean loss.

    Returns:
        Epochs that are over.
    """
    options, device = trainers[0].options, trainers[0].device
    plans = [trainer.draw(done + 1) for trainer in trainers]
    for epoch in range(done + 1, options.epochs + 1):
        began = time.monotonic()
        for trainer, plan in zip(trainers, plans, strict=True):
            trainer.begin(epoch, plan)
        for size in trainers[0].sizes:
            for trainer in trainers:
                trainer.step(size)
        # Drawn while the device still works on what is queued.
        plans = [trainer.draw(epoch + 1) for trainer in trainers] if epoch < options.epochs else []
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.monotonic() - began
        if on_epoch is not None:
            on_epoch(epoch, seconds, [trainer.mean_loss() for trainer in trainers])
        if deadline is not None and time.monotonic() + seconds > deadline:
            return epoch
    return options.epochs
