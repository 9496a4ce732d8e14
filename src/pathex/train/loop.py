"""The training loop: an optimizer, a schedule of its learning rate, a checkpoint after every epoch."""

import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pathex.distributed import is_sharded, like
from pathex.errors import PathexError, refusing
from pathex.files import appending, read_torch, write_lines, write_torch
from pathex.graph import freed_memory_kept, has_convolution_that_breaks
from pathex.sparse import dense_state, kept_state
from pathex.train.averaging import Average
from pathex.train.feed import epoch_seed
from pathex.train.machine import whole
from pathex.train.options import Batches, Companion, Events, Observe, Prepare, TrainOptions
from pathex.train.remedies import attach_remedy
from pathex.train.schedule import make_optimizer

_SECONDS_BETWEEN_STEP_EVENTS = 0.2
_MOST_COLLECTED = 2**18  # numbers in outputs; more are not worth the memory
_Loss = Callable[[Tensor, Tensor], Tensor]


class TrainingDiverged(PathexError, ArithmeticError):
    """The training loss is no longer a finite number."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save nested dictionaries and lists of tensors, numbers and text atomically."""
    # Fabric's own save goes through the system's temporary folder, from where no rename is atomic.
    with refusing(f"{path} cannot be written ({{}})", RuntimeError):
        write_torch(path, state)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load what ``save_checkpoint`` wrote, onto the CPU, and nothing but tensors and plain values."""
    state: dict[str, Any] = read_torch(path, "; delete it to train again")
    return state


def memory_format(model: nn.Module) -> torch.memory_format:
    """The layout of images and weights in which a network trains."""
    # Channels last: convolutions on the CPU are a third faster, and mixed precision needs it on the GPU.
    if any(is_sharded(parameter) for parameter in model.parameters()):  # these know no other layout than the usual one
        return torch.contiguous_format
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    return torch.contiguous_format if on_cpu and has_convolution_that_breaks(model) else torch.channels_last


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
    loss: _Loss,
    metric: Any,
    folder: Path,
    validation: Batches | None = None,
    metric_name: str = "accuracy",
    groups: Sequence[dict[str, Any]] | None = None,
    prepare: Prepare | None = None,
    on_event: Events | None = None,
    observe: Observe | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train a network in place, from its last checkpoint where there is one.

    ``last.ckpt`` is written before the first epoch and after each; ``metrics.jsonl`` has a line for each epoch in it.
    The global random state is as before when the training ends. Of several processes the first writes; each sees its
    share of every batch, and all end with the same network.

    Args:
        model: The network.
        feed: Training batches; with ``mixup`` or ``cutmix`` in the options, a `Mixed` feed.
        options: Learning rate, epochs, seed.
        fabric: The ``lightning_fabric.Fabric`` that decides devices, precision and loggers.
        loss: Mean loss of ``(outputs, targets)`` over the images.
        metric: A torchmetrics metric of ``(outputs, targets)``; it may see several batches as one.
        folder: Folder of the two files.
        validation: Batches to measure on after each epoch.
        metric_name: Name of the metric in the rows.
        groups: Groups of parameters for the optimizer; None is one of all that require a gradient.
        prepare: Attaches a mask to network and optimizer; may return a `Companion` for the checkpoint.
        on_event: Receives ``resumed``, ``step`` (a few in a second) and ``epoch`` events.
        observe: From network and epoch to numbers by name, which come into the row of the epoch.

    Returns:
        The network as Fabric runs it, and one row for each epoch: ``epoch``, ``train_loss``, ``train_<metric_name>``,
        ``val_<metric_name>`` if measured, ``lr``, ``seconds``. Where ``options`` ask for an average of the weights, it
        takes their place after the last epoch, before that is measured.
    """
    device = fabric.device
    with freed_memory_kept(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if groups is None:
            groups = [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]
        loop = _Loop(model, options, fabric, folder, groups, prepare, on_event or (lambda kind, payload: None))
        if loop.resume():
            loop.tell("resumed", {"stage": "training", "epoch": loop.epoch, "epochs": options.epochs})
        metric = metric.to(device)
        while loop.epoch < options.epochs:
            row = loop.train_epoch(feed, loss, metric)
            row[f"train_{metric_name}"] = _value(metric)
            if validation is not None:
                row[f"val_{metric_name}"] = evaluate(loop.model, validation, metric)
            if observe is not None:
                row |= observe(loop.model, row["epoch"])
            loop.finish_epoch(row)
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
        tell: Events,
    ) -> None:
        self.options, self.fabric, self.tell, self._folder = options, fabric, tell, folder
        self.checkpoint, self.metrics = folder / "last.ckpt", folder / "metrics.jsonl"
        self.rows: list[dict[str, Any]] = []
        self._started, self._mixed = 0.0, bool(options.mixup or options.cutmix)
        if options.sync_batchnorm and fabric.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        names = {parameter: name for name, parameter in model.named_parameters()}
        model.to(memory_format=memory_format(model))
        self.model = fabric.setup_module(model)
        self._layout = memory_format(model)
        # All weights in one kernel; sharded ones know no such kernel.
        self._fused = (fabric.device.type == "cuda" and fabric.world_size == 1) or None
        # Looked up by name: sharding puts other parameters in their place.
        groups = [
            {**group, "params": [model.get_parameter(names[each]) for each in group["params"]]} for group in groups
        ]
        self._optimizer, self._scheduler = make_optimizer(groups, options, fused=self._fused)
        self.optimizer = fabric.setup_optimizers(self._optimizer)
        kind, chosen = options.average, options.average_options
        self._average = None if kind == "none" else Average(model, kind, options.epochs, chosen)
        prepared = None if prepare is None else prepare(model, self._optimizer)
        self._companion = prepared if isinstance(prepared, Companion) else None
        self._extras: dict[str, Any] = {}
        # In this order: a remedy works on what the mask left, and the average takes what the remedy made.
        if (name := options.remedy) != "none":
            mask = partial(getattr, prepared, "mask", {})
            self._extras["remedy"] = attach_remedy(name, self._optimizer, model, mask, options.remedy_options)
        if self._average is not None:
            self._extras["average"] = self._average
            self._optimizer.register_step_post_hook(self._average.end_step)

    @property
    def epoch(self) -> int:
        return self.options.start + len(self.rows)

    def resume(self) -> bool:
        if not self.fabric.broadcast(self.checkpoint.exists()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch expects a step of the optimizer before each of the schedule
                for _ in range(self.options.start):
                    self._scheduler.step()
            self._save()
            if self.fabric.is_global_zero:
                self.metrics.unlink(missing_ok=True)
            return False
        state = load_checkpoint(self.checkpoint)
        # First: a mask that moved must be in force before weights are loaded under it.
        if self._companion is not None:
            self._companion.load_state_dict(state["companion"])
        own = self.model.state_dict()
        self.model.load_state_dict({name: like(value, own.get(name)) for name, value in state["model"].items()})
        trained = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        known = kept_state(self.model, self._optimizer, state["optimizer"])
        momenta = {
            number: {name: like(value, trained[number]) for name, value in kept.items()}
            for number, kept in known["state"].items()
        }
        self._optimizer.load_state_dict({**known, "state": momenta})
        for group in self._optimizer.param_groups:
            group["fused"] = self._fused  # a matter of this machine, not of the one that wrote the checkpoint
        self._scheduler.load_state_dict(state["scheduler"])
        for name, extra in self._extras.items():
            extra.load_state_dict(state[name])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.rows = state["rows"]
        # Rows are kept in the checkpoint, so that the file never disagrees with the weights, whenever a kill came.
        if self.fabric.is_global_zero:
            write_lines(self.metrics, self.rows)
        return True

    def train_epoch(self, feed: Batches, loss: _Loss, metric: Any) -> dict[str, Any]:
        self._started = last = time.monotonic()
        number = self.epoch + 1
        # Dropout follows from seed and epoch, as order and augmentation do, so that no generator needs to be saved.
        torch.manual_seed(epoch_seed(self.options.seed, number, self.fabric.global_rank))
        metric.reset()
        collected = Collected(metric.update)
        total = torch.zeros((), device=self.fabric.device, dtype=torch.float64)
        self.model.train()
        for module in self.model.modules():
            if self.options.freeze_batchnorm and isinstance(module, _BatchNorm):
                module.eval()
        for count, (inputs, targets) in enumerate(feed.shuffled(self.options.seed, number), 1):
            self._step(inputs, targets, loss, collected, total)
            if (now := time.monotonic()) - last >= _SECONDS_BETWEEN_STEP_EVENTS:
                last = now
                if self.fabric.world_size == 1:  # several have to stop together, at the end of the epoch
                    self._check(float(total), number)
                epochs, steps = self.options.epochs, feed.batches
                self.tell("step", {"epoch": number, "epochs": epochs, "step": count, "steps": steps})
        collected.flush()
        for extra in self._extras.values():
            extra.end_epoch(number)
        if self._average is not None and number == self.options.epochs:
            images = (inputs.contiguous(memory_format=self._layout) for inputs, _ in feed.in_order())
            self._average.install(None if self.options.freeze_batchnorm else images, self.model)
        if self.fabric.world_size > 1:
            torch.distributed.all_reduce(total)  # Fabric's own leaves the dtype
            # Every process measures with the statistics of the first, which the checkpoint holds.
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)
        self._check(float(total), number)
        mean = float(total) / feed.images
        return {"epoch": number, "train_loss": mean, "lr": self._scheduler.get_last_lr()[0]}

    def _step(self, inputs: Tensor, targets: Tensor, loss: _Loss, collected: "Collected", total: Tensor) -> None:
        """One step of the optimizer, by the gradient of a batch in parts, and over all processes."""
        self.optimizer.zero_grad()
        mean: Tensor | int = len(inputs)
        if self.fabric.world_size > 1:
            # Processes join gradients by their mean, as if all had the mean share of the batch.
            share = total.new_tensor(float(mean))
            torch.distributed.all_reduce(share)
            mean = share / self.fabric.world_size
        # As many parts in every process, and none empty.
        parts = max(1, min(self.options.accumulate, int(mean))) if self.options.accumulate > 1 else 1
        pieces = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
        for number, (part, wanted) in enumerate(pieces, 1):
            with self.fabric.no_backward_sync(self.model, enabled=number < parts):
                outputs = self.model(part.contiguous(memory_format=self._layout))
                value = loss(outputs, wanted)
                self.fabric.backward(value * (len(part) / mean))
            total += value.detach() * len(part)
            collected(outputs.detach(), wanted.argmax(1) if self._mixed else wanted)
        self.optimizer.step()

    def finish_epoch(self, row: dict[str, Any]) -> None:
        self._scheduler.step()
        row["seconds"] = round(time.monotonic() - self._started, 3)
        self.rows.append(row)
        if row["epoch"] in self.options.keep:
            self._write(self._folder / f"epoch-{row['epoch']}.ckpt", {"model": self.model.state_dict()})
        self._save()
        if self.fabric.is_global_zero:
            with appending(self.metrics) as lines:
                lines.write(f"{json.dumps(row)}\n".encode())
        if self.fabric.loggers:
            self.fabric.log_dict({name: value for name, value in row.items() if name != "epoch"}, step=row["epoch"])
            for logger in self.fabric.loggers:
                logger.save()  # what a kill takes away would be missing from the curve: these epochs do not come again
        self.tell("epoch", {"epochs": self.options.epochs, **row})

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
            "optimizer": dense_state(self.model, self._optimizer),
            "scheduler": self._scheduler.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "companion": {} if self._companion is None else self._companion.state_dict(),
            **{name: extra.state_dict() for name, extra in self._extras.items()},
            "rows": self.rows,
        }
        self._write(self.checkpoint, state)
        self.fabric.barrier()

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        state = whole(state, keep=self.fabric.is_global_zero)
        if self.fabric.is_global_zero:
            save_checkpoint(path, state)


class Collected:
    """Hands on the outputs of many steps at once: a metric costs as much for a few images as for many."""

    def __init__(self, record: Callable[[Tensor, Tensor], object]) -> None:
        self._record = record
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, outputs: Tensor, targets: Tensor) -> None:
        """Take the outputs and targets of a batch, which must not change later."""
        self._pairs.append((outputs, targets))
        if sum(pair[0].numel() for pair in self._pairs) >= _MOST_COLLECTED:
            self.flush()

    def flush(self) -> None:
        """Hand on everything."""
        pairs, self._pairs = self._pairs, []
        if len(pairs) == 1:
            self._record(*pairs[0])
        elif pairs:
            self._record(*(torch.cat(each) for each in zip(*pairs, strict=True)))
