"""The training loop: SGD with steps in the learning rate, a checkpoint after every epoch."""

import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pathex.distributed import is_sharded, like
from pathex.errors import PathexError
from pathex.masks import replacing
from pathex.train.checkpoint import load_checkpoint, save_checkpoint
from pathex.train.fsdp import whole
from pathex.train.options import Batches, Companion, Events, Prepare, TrainOptions, milestone_epochs
from pathex.train.seeds import epoch_seed
from pathex.train.step import Collected, Step

_SECONDS_BETWEEN_STEP_EVENTS = 0.2


class TrainingDiverged(PathexError, ArithmeticError):
    """The training loss is no longer a finite number."""


def _breaks_channels_last(module: nn.Module) -> bool:
    # In oneDNN 3.12 the backward pass of a narrow strided 1x1 convolution writes beyond its memory in channels_last, if
    # it has one group: https://github.com/uxlfoundation/oneDNN/issues/6035
    if not isinstance(module, nn.Conv2d) or module.groups > 1 or module.in_channels >= 16:
        return False
    return set(module.kernel_size) == {1} and max(module.stride) > 1


def memory_format(model: nn.Module) -> torch.memory_format:
    """The layout of images and weights in which a network trains."""
    # Channels last: convolutions on the CPU are a third faster, and mixed precision needs it on the GPU.
    if any(is_sharded(parameter) for parameter in model.parameters()):  # these know no other layout than the usual one
        return torch.contiguous_format
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    breaks = on_cpu and any(map(_breaks_channels_last, model.modules()))
    return torch.contiguous_format if breaks else torch.channels_last


def evaluate(model: nn.Module, feed: Batches, metric: Any) -> float:
    """A torchmetrics metric, reset first, of the network in eval mode over one pass and over all processes."""
    modes, layout = [(module, module.training) for module in model.modules()], memory_format(model)
    model.eval()
    metric.reset()
    with torch.no_grad():
        for inputs, targets in feed.in_order():
            metric.update(model(inputs.contiguous(memory_format=layout)), targets)
    for module, training in modes:
        module.training = training
    return _value(metric)


def _value(metric: Any) -> float:
    # torchmetrics divides in float32; what that adds to a fraction such as 0.595 is cut off.
    return round(float(metric.compute()), 7)


def fit(
    model: nn.Module,
    feed: Batches,
    options: TrainOptions,
    *,
    fabric: Any,
    loss: Callable[[Tensor, Tensor], Tensor],
    metric: Any,
    folder: Path,
    validation: Batches | None = None,
    metric_name: str = "accuracy",
    groups: Sequence[dict[str, Any]] | None = None,
    prepare: Prepare | None = None,
    on_event: Events | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train a network in place, from its last checkpoint where there is one.

    ``last.ckpt`` is written before the first epoch and after each; ``metrics.jsonl`` has a line for each epoch in it.
    The global random state is as before when the training ends. Of several processes the first writes; each sees its
    share of every batch, and all end with the same network.

    Args:
        model: The network.
        feed: Training batches.
        options: Learning rate, epochs, seed.
        fabric: The ``lightning_fabric.Fabric`` that decides devices, precision and loggers.
        loss: Mean loss of ``(outputs, targets)`` over the images.
        metric: A torchmetrics metric of ``(outputs, targets)``; it may see several batches as one.
        folder: Folder of the two files.
        validation: Batches to measure on after each epoch.
        metric_name: Name of the metric in the rows.
        groups: Groups of parameters for the optimizer; None is one of all that require a gradient.
        prepare: Attaches a mask to network and optimizer; may return a :class:`Companion` for the checkpoint.
        on_event: Receives ``resumed``, ``step`` (a few in a second) and ``epoch`` events.

    Returns:
        The network as Fabric runs it, and one row for each epoch: ``epoch``, ``train_loss``, ``train_<metric_name>``,
        ``val_<metric_name>`` if measured, ``lr``, ``seconds``.
    """
    device = fabric.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if groups is None:
            groups = [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]
        loop = _Loop(model, options, fabric, folder, groups, prepare)
        if loop.resume() and on_event is not None:
            on_event("resumed", {"stage": "training", "epoch": loop.epoch, "epochs": options.epochs})
        metric = metric.to(device)
        while loop.epoch < options.epochs:
            row = loop.train_epoch(feed, loss, metric, on_event)
            row[f"train_{metric_name}"] = _value(metric)
            if validation is not None:
                row[f"val_{metric_name}"] = evaluate(loop.model, validation, metric)
            loop.finish_epoch(row, on_event)
    return loop.model, loop.rows


class _Loop:
    """Everything that a checkpoint holds, and the passes that change it."""

    def __init__(
        self,
        model: nn.Module,
        options: TrainOptions,
        fabric: Any,
        folder: Path,
        groups: Sequence[dict[str, Any]],
        prepare: Prepare | None,
    ) -> None:
        self.options, self.fabric, self._folder = options, fabric, folder
        self.checkpoint, self.metrics = folder / "last.ckpt", folder / "metrics.jsonl"
        self.rows: list[dict[str, Any]] = []
        self._started = 0.0
        if options.sync_batchnorm and fabric.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        names = {parameter: name for name, parameter in model.named_parameters()}
        model.to(memory_format=memory_format(model))
        self.model = fabric.setup_module(model)
        self._layout = memory_format(model)
        # All weights in one kernel; sharded ones know no such kernel.
        self._fused = (fabric.device.type == "cuda" and fabric.world_size == 1) or None
        self._optimizer = torch.optim.SGD(
            # Looked up by name: sharding puts other parameters in their place.
            [{**group, "params": [model.get_parameter(names[each]) for each in group["params"]]} for group in groups],
            lr=options.lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
            fused=self._fused,
        )
        milestones = milestone_epochs(options.epochs, options.milestones)
        self._scheduler = torch.optim.lr_scheduler.MultiStepLR(self._optimizer, milestones, options.gamma)
        self.optimizer = fabric.setup_optimizers(self._optimizer)
        companion = None if prepare is None else prepare(model, self._optimizer)
        self._companion = companion if isinstance(companion, Companion) else None

    @property
    def epoch(self) -> int:
        return self.options.start + len(self.rows)

    def resume(self) -> bool:
        if not self.fabric.broadcast(self.checkpoint.exists()):
            self._skip_to_start()
            self._save()
            if self.fabric.is_global_zero:
                self.metrics.unlink(missing_ok=True)
            return False
        state = load_checkpoint(self.checkpoint)
        # First: a mask that moved must be in force before weights are loaded under it.
        if self._companion is not None:
            self._companion.load_state_dict(state["companion"])
        self._load(state["model"], state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.rows = state["rows"]
        # Rows are kept in the checkpoint, so that the file never disagrees with the weights, whenever a kill came.
        if self.fabric.is_global_zero:
            with replacing(self.metrics) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        return True

    def _load(self, weights: dict[str, Any], optimizer: dict[str, Any]) -> None:
        own = self.model.state_dict()
        self.model.load_state_dict({name: like(value, own.get(name)) for name, value in weights.items()})
        trained = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        momenta = {
            number: {name: like(value, trained[number]) for name, value in kept.items()}
            for number, kept in optimizer["state"].items()
        }
        self._optimizer.load_state_dict({**optimizer, "state": momenta})
        for group in self._optimizer.param_groups:
            group["fused"] = self._fused  # a matter of this machine, not of the one that wrote the checkpoint

    def train_epoch(
        self, feed: Batches, loss: Callable[[Tensor, Tensor], Tensor], metric: Any, on_event: Events | None
    ) -> dict[str, Any]:
        self._started = last = time.monotonic()
        number = self.epoch + 1
        # Dropout follows from seed and epoch, as order and augmentation do, so that no generator needs to be saved.
        torch.manual_seed(epoch_seed(self.options.seed, number, self.fabric.global_rank))
        metric.reset()
        collected = Collected(metric.update)
        layout, parts = self._layout, self.options.accumulate
        step = Step(self.model, self.optimizer, loss, collected, fabric=self.fabric, layout=layout, accumulate=parts)
        self._begin_training()
        for count, (inputs, targets) in enumerate(feed.shuffled(self.options.seed, number), 1):
            step(inputs, targets)
            if (now := time.monotonic()) - last >= _SECONDS_BETWEEN_STEP_EVENTS:
                last = now
                if self.fabric.world_size == 1:  # several have to stop together, at the end of the epoch
                    self._check(float(step.total), number)
                if on_event is not None:
                    position = {"epoch": number, "epochs": self.options.epochs, "step": count, "steps": feed.batches}
                    on_event("step", position)
        collected.flush()
        sums = torch.stack([step.total, step.total.new_tensor(step.images)])
        if self.fabric.world_size > 1:
            torch.distributed.all_reduce(sums)  # Fabric's own leaves the dtype
        total, images = sums.tolist()
        self._check(total, number)
        self._share_buffers()
        return {"epoch": number, "train_loss": total / images, "lr": self._scheduler.get_last_lr()[0]}

    def _share_buffers(self) -> None:
        """Give every process the statistics of the first, which the checkpoint holds: all measure the same network."""
        if self.fabric.world_size > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _begin_training(self) -> None:
        self.model.train()
        if self.options.freeze_batchnorm:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def finish_epoch(self, row: dict[str, Any], on_event: Events | None) -> None:
        self._scheduler.step()
        row["seconds"] = round(time.monotonic() - self._started, 3)
        self.rows.append(row)
        if row["epoch"] in self.options.keep:
            self._write(self._folder / f"epoch-{row['epoch']}.ckpt", {"model": self.model.state_dict()})
        self._save()
        if self.fabric.is_global_zero:
            with self.metrics.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
        if self.fabric.loggers:
            self.fabric.log_dict({name: value for name, value in row.items() if name != "epoch"}, step=row["epoch"])
            for logger in self.fabric.loggers:
                logger.save()  # what a kill takes away would be missing from the curve: these epochs do not come again
        if on_event is not None:
            on_event("epoch", {"epochs": self.options.epochs, **row})

    def _skip_to_start(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects a step of the optimizer before each of the schedule
            for _ in range(self.options.start):
                self._scheduler.step()

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
            "companion": {} if self._companion is None else self._companion.state_dict(),
            "rows": self.rows,
        }
        self._write(self.checkpoint, state)
        self.fabric.barrier()

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        state = whole(state, keep=self.fabric.is_global_zero)
        if self.fabric.is_global_zero:
            save_checkpoint(path, state)
