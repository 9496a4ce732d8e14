"""What a training is asked for, and what it works with."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

Events = Callable[[str, dict[str, Any]], None]
"""Receiver of events: ``(kind, payload)``."""

Observe = Callable[[nn.Module, int], Mapping[str, float]]
"""From the network after an epoch, and the number of the epoch, to numbers by name."""

Prepare = Callable[[nn.Module, Optimizer], object]
"""Called with the network and its optimizer before the first step.

What it returns may be a `Companion`; its ``mask``, if it has one, is the one that a remedy sees.
"""


class Batches(Protocol):
    """What the loop trains and measures on; `pathex.train.Feed` is one.

    Attributes:
        images: Number of images in one pass, over all processes.
        batches: Number of batches in one pass.
    """

    images: int
    batches: int

    def shuffled(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass that follows from seed and epoch: this process's share of each batch, inputs and targets."""

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in fixed order, not augmented."""


@runtime_checkable
class Companion(Protocol):
    """What changes beside the network while it trains, such as a dynamic mask; checkpoints hold its state."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Take up a saved state."""


@dataclass(frozen=True)
class TrainOptions:
    """How a network is trained; fields that are settings of ``pathex run`` mean the same there.

    Attributes:
        start: Epochs that count as done: learning rate, order and augmentation begin after them.
        keep: Epochs after which the network is kept as ``epoch-N.ckpt`` beside ``last.ckpt``.
        seed: Seed of order, augmentation and dropout.
    """

    epochs: int
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    head_lr: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    lr_schedule: Literal["steps", "cosine"] = "steps"
    warmup: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    loss: str = "auto"
    label_smoothing: float = 0.0
    augment: str = "none"
    augment_options: dict[str, Any] = field(default_factory=dict)
    mixup: float = 0.0
    cutmix: float = 0.0
    average: str = "none"
    average_options: dict[str, Any] = field(default_factory=dict)
    remedy: str = "none"
    remedy_options: dict[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    freeze_batchnorm: bool = False
    sync_batchnorm: bool = False
    start: int = 0
    keep: tuple[int, ...] = ()
    seed: int = 0
