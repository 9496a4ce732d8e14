"""The training loop: SGD with steps in the learning rate, a checkpoint after every epoch."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pathex.errors import PathexError
from pathex.train.checkpoint import load_checkpoint, replacing, restore_rng, rng_state, save_checkpoint
from pathex.train.feed import Feed

__all__ = ["Events", "TrainOptions", "TrainingDiverged", "evaluate", "fit", "milestone_epochs"]

Events = Callable[[str, dict[str, Any]], None]
"""Receiver of events: ``(kind, payload)``."""

_SECONDS_BETWEEN_STEP_EVENTS = 0.2


class TrainingDiverged(PathexError, ArithmeticError):
    """The training loss is no longer a finite number."""


@dataclass(frozen=True)
class TrainOptions:
    """What the loop needs to know.

    Attributes:
        epochs: Passes over the training images.
        lr: Learning rate at the start.
        momentum: Momentum of SGD.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: L2 penalty, on every parameter.
        milestones: Fractions of the training at which the learning rate is multiplied by ``gamma``.
        gamma: Factor of the learning rate at each milestone.
        augment: Name of the augmentation, as ``pathex.data.augment`` knows it.
        seed: Seed of order, augmentation and dropout.
    """

    epochs: int
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    augment: str = "none"
    seed: int = 0


def milestone_epochs(epochs: int, milestones: tuple[float, ...]) -> list[int]:
    """The number of finished epochs at which the learning rate falls.

    Args:
        epochs: Epochs of the training.
        milestones: Fractions of the training, in (0, 1).

    Returns:
        The nearest ends of an epoch, in order. The first epoch always has the full learning rate.

    Example:
        >>> milestone_epochs(160, (0.5, 0.75))
        [80, 120]
    """
    return sorted(max(1, math.floor(fraction * epochs + 0.5)) for fraction in milestones)


def evaluate(model: nn.Module, feed: Feed, metric: Any) -> float:
    """A metric of the network in eval mode over one pass, without gradient.

    Args:
        model: Network on the device of the feed; its mode is restored.
        feed: Batches to measure on.
        metric: A torchmetrics metric on the same device; it is reset first.

    Returns:
        The value of the metric.
    """
    training = model.training
    model.eval()
    metric.reset()
    with torch.no_grad():
        for images, labels in feed.in_order():
            metric.update(model(images.contiguous(memory_format=torch.channels_last)), labels)
    model.train(training)
    return _value(metric)


def _value(metric: Any) -> float:
    # torchmetrics divides in float32; what that adds to a fraction such as 0.595 is cut off.
    return round(float(metric.compute()), 7)


def fit(
    model: nn.Module,
    feed: Feed,
    options: TrainOptions,
    *,
    fabric: Any,
    loss: Callable[[Tensor, Tensor], Tensor],
    metric: Any,
    folder: Path,
    validation: Feed | None = None,
    metric_name: str = "accuracy",
    prepare: Callable[[nn.Module, Optimizer], object] | None = None,
    on_event: Events | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train a network, from its last checkpoint where there is one.

    ``last.ckpt`` is written before the first epoch and after each; ``metrics.jsonl`` has a line for each epoch in it.
    The global random state is as before when the training ends.

    Args:
        model: The network; it is trained in place.
        feed: Training batches.
        options: Learning rate, epochs, seed.
        fabric: The ``lightning_fabric.Fabric`` that decides device and precision.
        loss: Mean loss of ``(outputs, labels)``.
        metric: A torchmetrics metric of ``(outputs, labels)``.
        folder: Folder of ``last.ckpt`` and ``metrics.jsonl``.
        validation: Batches to measure on after each epoch.
        metric_name: Name of the metric in the rows.
        prepare: Called with the network and its optimizer on the device before the first step, to attach a mask.
        on_event: Receives ``resumed``, ``step`` (a few in a second) and ``epoch`` events.

    Returns:
        The network as Fabric runs it (device and precision), and one row for each epoch: ``epoch``, ``train_loss``,
        ``train_<metric_name>``, ``val_<metric_name>`` if measured, ``lr``, ``seconds``.
    """
    device = fabric.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(options.seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(options.seed)
        loop = _Loop(model, options, fabric, folder, prepare)
        if loop.resume() and on_event is not None:
            on_event("resumed", {"stage": "training", "epoch": loop.epoch, "epochs": options.epochs})
        measure = _Measure(loss, metric.to(device), metric_name)
        while loop.epoch < options.epochs:
            row = loop.train_epoch(feed, measure, on_event)
            if validation is not None:
                row[f"val_{metric_name}"] = evaluate(loop.model, validation, measure.metric)
            loop.finish_epoch(row, on_event)
    return loop.model, loop.rows


@dataclass(frozen=True)
class _Measure:
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Any
    name: str


class _Loop:
    """Everything that a checkpoint holds, and the passes that change it."""

    def __init__(
        self,
        model: nn.Module,
        options: TrainOptions,
        fabric: Any,
        folder: Path,
        prepare: Callable[[nn.Module, Optimizer], object] | None,
    ) -> None:
        self.options, self.fabric = options, fabric
        self.checkpoint, self.metrics = folder / "last.ckpt", folder / "metrics.jsonl"
        self.rows: list[dict[str, Any]] = []
        self._started = 0.0
        # Convolutions on the CPU are a third faster in this layout, and mixed precision needs it on the GPU.
        model.to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            lr=options.lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
        )
        milestones = milestone_epochs(options.epochs, options.milestones)
        self._scheduler = torch.optim.lr_scheduler.MultiStepLR(self._optimizer, milestones, options.gamma)
        self.model, self.optimizer = fabric.setup(model, self._optimizer)
        if prepare is not None:
            prepare(model, self._optimizer)

    @property
    def epoch(self) -> int:
        return len(self.rows)

    def resume(self) -> bool:
        if not self.checkpoint.exists():
            self._save()
            self.metrics.unlink(missing_ok=True)
            return False
        state = load_checkpoint(self.checkpoint)
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        restore_rng(state["rng"], self.fabric.device)
        self.rows = state["rows"]
        # Rows are kept in the checkpoint, so that the file never disagrees with the weights, whenever a kill came.
        with replacing(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        return True

    def train_epoch(self, feed: Feed, measure: _Measure, on_event: Events | None) -> dict[str, Any]:
        self._started = last = time.monotonic()
        number = self.epoch + 1
        measure.metric.reset()
        self.model.train()
        total = torch.zeros((), device=self.fabric.device, dtype=torch.float64)
        for step, (images, labels) in enumerate(feed.shuffled(self.options.seed, number, self.options.augment), 1):
            self.optimizer.zero_grad()
            outputs = self.model(images.contiguous(memory_format=torch.channels_last))
            loss = measure.loss(outputs, labels)
            self.fabric.backward(loss)
            self.optimizer.step()
            total += loss.detach() * len(labels)
            measure.metric.update(outputs.detach(), labels)
            # Reading the loss makes a GPU wait, so it is done as seldom as progress is shown.
            if (now := time.monotonic()) - last >= _SECONDS_BETWEEN_STEP_EVENTS:
                last = now
                self._check(float(total), number)
                if on_event is not None:
                    position = {"epoch": number, "epochs": self.options.epochs, "step": step, "steps": feed.batches}
                    on_event("step", position)
        self._check(float(total), number)
        return {
            "epoch": number,
            "train_loss": float(total) / feed.images,
            f"train_{measure.name}": _value(measure.metric),
            "lr": self._scheduler.get_last_lr()[0],
        }

    def finish_epoch(self, row: dict[str, Any], on_event: Events | None) -> None:
        self._scheduler.step()
        row["seconds"] = round(time.monotonic() - self._started, 3)
        self.rows.append(row)
        self._save()
        with self.metrics.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        if on_event is not None:
            on_event("epoch", {"epochs": self.options.epochs, **row})

    def _check(self, total: float, number: int) -> None:
        if not math.isfinite(total):
            raise TrainingDiverged(
                f"the training loss became {total} in epoch {number} with lr {self._scheduler.get_last_lr()[0]:g}; "
                "a smaller lr or precision 32-true usually helps"
            )

    def _save(self) -> None:
        state = {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "rng": rng_state(self.fabric.device),
            "rows": self.rows,
        }
        save_checkpoint(self.checkpoint, state)
