"""Masks found by training: iterative magnitude pruning with rewinding, and magnitude once after training.

Frankle, Carbin, "The Lottery Ticket Hypothesis" (ICLR 2019). Rewinding to epoch k: Frankle, Dziugaite, Roy, Carbin,
"Linear Mode Connectivity and the Lottery Ticket Hypothesis" (ICML 2020). Rewinding of the learning rate: Renda,
Frankle, Carbin, "Comparing Rewinding and Fine-tuning in Neural Network Pruning" (ICLR 2020).

A run of L levels trains L networks, and then its own. Level l trains what level l - 1 kept, from the rewound weights
and with a new optimizer, and keeps the weights that are largest then. ``levels/NN`` holds its checkpoint and its mask.
"""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pathex.errors import InvalidInput
from pathex.experiments.runs.config import RunConfig, read_options
from pathex.experiments.runs.folder import Journal, read_json, write_json
from pathex.experiments.runs.tickets import prune_options, start_mask, train_options
from pathex.masks import Handle, Mask, attach, make_permanent
from pathex.pruning import densities, prune
from pathex.tasks import Task
from pathex.train import load_checkpoint, save_checkpoint

OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "imp": {"levels": 5, "rewind": "init", "epochs": None},
        "magnitude-after-training": {"rewind": "learning-rate", "epochs": None},
    }
)
"""Options of each method and their defaults.

``levels``: their number, or the fraction of its weights that each keeps, in (0, 1). ``rewind``: where weights go back
to after a level: ``init``, ``epoch:K`` (of the first training) or ``learning-rate`` (weights stay, the schedule begins
anew). ``epochs``: epochs of a level; null is those of the run.
"""


@dataclass(frozen=True)
class Plan:
    """How a mask is found by training."""

    levels: int | float
    epoch: int | None
    epochs: int

    def count(self, density: float) -> int:
        """Number of levels to a density relative to the start: 9 levels of 0.8 leave 0.8**9."""
        if isinstance(self.levels, int):
            return self.levels
        return max(1, round(math.log(density) / math.log(self.levels)))


def plan(config: RunConfig) -> Plan:
    """Read the method's options."""
    options = {"levels": 1, **read_options(config, OPTIONS[config.method])}
    levels, epochs = options["levels"], config.epochs if options["epochs"] is None else options["epochs"]
    whole = isinstance(levels, int) and not isinstance(levels, bool) and levels >= 1
    if not whole and not (isinstance(levels, float) and 0 < levels < 1):
        raise InvalidInput(f"levels is {levels!r}; allowed: a whole number of at least 1, or a density in (0, 1)")
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise InvalidInput(f"epochs of a level is {epochs!r}; allowed: a whole number of at least 1")
    return Plan(levels, _epoch(options["rewind"], min(epochs, config.epochs)), epochs)


def _epoch(text: Any, most: int) -> int | None:
    if text in {"init", "learning-rate"}:
        return 0 if text == "init" else None
    kind, _, number = str(text).partition(":")
    if kind != "epoch" or not number.isdecimal() or int(number) > most:
        raise InvalidInput(f"rewind is {text!r}; allowed: init, learning-rate, or epoch:K with K from 0 to {most}")
    return int(number)


def rewound_mask(
    config: RunConfig, task: Task, folder: Path, fabric: Any, journal: Journal
) -> tuple[Mask, list[dict[str, Any]]]:
    """Find a mask by training, or go on where another process stopped."""
    chosen = plan(config)
    start = start_mask(config, task)
    before = 1.0 if start is None else start.density
    count = chosen.count((1 - config.sparsity) / before)
    steps = densities(before, 1 - config.sparsity, count, config.schedule)
    levels = [_Level(config, chosen, task, folder, fabric, journal, number, count) for number in range(1, count + 1)]
    sparsities = [*(1 - density for density in steps[:-1]), config.sparsity]
    if not fabric.broadcast((folder / "levels").exists()):
        _try_out(config, task, start, sparsities, fabric)
    _keep_beginning(levels[0])
    mask, rows = start, []
    for level, sparsity in zip(levels, sparsities, strict=True):
        mask, row = level.finished() or level.carry_out(mask, sparsity)
        rows.append(row)
        journal("prune_round", {"round": level.number, "rounds": count, "density": mask.density})
    assert mask is not None
    mask.metadata.update(method=config.method, options=dict(config.method_options), rounds=count, seed=config.seed)
    return mask, rows


def rewind(config: RunConfig, task: Task, folder: Path) -> int:
    """Put the network where the run's own training begins; called in every process, also when the mask was there."""
    chosen = plan(config)
    last = len(list((folder / "levels").glob("[0-9]*/mask.safetensors")))
    task.model.load_state_dict(_state(chosen, folder, last + 1))
    return chosen.epoch or 0


@dataclass(frozen=True)
class _Level:
    """One training and the mask that it leaves."""

    config: RunConfig
    plan: Plan
    task: Task
    run_folder: Path
    fabric: Any
    journal: Journal
    number: int
    count: int

    @property
    def folder(self) -> Path:
        return _folder(self.run_folder, self.number)

    def finished(self) -> tuple[Mask, dict[str, Any]] | None:
        path = self.folder / "mask.safetensors"
        if not self.fabric.broadcast(path.exists()):
            return None
        self.journal("resumed", {"stage": "level", "level": self.number, "levels": self.count})
        return Mask.load(path, self.task.model), read_json(self.folder / "level.json")

    def carry_out(self, mask: Mask | None, sparsity: float) -> tuple[Mask, dict[str, Any]]:
        if self.fabric.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.fabric.barrier()
        model = self.task.model
        model.load_state_dict(_state(self.plan, self.run_folder, self.number))
        if mask is not None:
            make_permanent(model, mask)
        rows = self._train(mask)
        began = time.monotonic()
        found, known = _pruned(self.config, self.task, mask, sparsity, self.fabric)
        seconds = sum(row["seconds"] for row in rows) + time.monotonic() - began
        last = {name: value for name, value in (rows[-1] if rows else {}).items() if name not in {"epoch", "lr"}}
        row = {**last, **known, "round": self.number, "rounds": self.count, "seconds": round(seconds, 3)}
        if self.fabric.is_global_zero:
            write_json(self.folder / "level.json", row)
            # The mask is written last: where it is, the level is over.
            found.save(self.folder / "mask.safetensors")
        self.fabric.barrier()
        return found, row

    def _train(self, mask: Mask | None) -> list[dict[str, Any]]:
        first, handles = self.number == 1, list[Handle]()
        epoch, place = self.plan.epoch or 0, {"level": self.number, "levels": self.count}

        def prepare(model: nn.Module, optimizer: Optimizer) -> None:
            if mask is not None:
                handles.append(attach(model, mask, optimizer))

        def report(kind: str, payload: dict[str, Any]) -> None:
            self.journal(kind, {**payload, **place})

        options = train_options(self.config)
        begin, keep = (0, (epoch,) if epoch else ()) if first else (epoch, ())
        options = replace(options, epochs=self.plan.epochs, start=begin, keep=keep)
        try:
            _, rows = self.task.train(options, fabric=self.fabric, folder=self.folder, prepare=prepare, on_event=report)
        finally:
            for handle in handles:
                handle.remove()
        # Of several processes each has BatchNorm statistics of its own; the first one's count, as in the checkpoint.
        self.task.model.load_state_dict(load_checkpoint(self.folder / "last.ckpt")["model"])
        self.task.model.zero_grad(set_to_none=True)
        self.task.model.eval()
        return rows


def _pruned(
    config: RunConfig, task: Task, mask: Mask | None, sparsity: float, fabric: Any
) -> tuple[Mask, dict[str, Any]]:
    options = {**prune_options(config, task), "sparsity": sparsity}
    result = prune(task.model, "magnitude", data=task.example.to(fabric.device), rounds=1, mask=mask, **options)
    return result.mask, result.history[0]


def _try_out(config: RunConfig, task: Task, mask: Mask | None, sparsities: Sequence[float], fabric: Any) -> None:
    """Go through all levels without training, so that settings that pruning refuses show before the first of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sparsity in sparsities:
            mask, _ = _pruned(replace(config, strict=False), task, mask, sparsity, fabric)


def _folder(folder: Path, level: int) -> Path:
    return folder / "levels" / f"{level:02}"


def _keep_beginning(level: _Level) -> None:
    """Write the initialization once, so that every process and every later one rewinds to the same tensors."""
    path = level.run_folder / "levels" / "init.ckpt"
    if level.fabric.is_global_zero and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {"model": level.task.model.state_dict()})
    level.fabric.barrier()


def _state(chosen: Plan, folder: Path, level: int) -> dict[str, Tensor]:
    """The network's state where the training of a level begins; the run's own follows the last level."""
    path = folder / "levels" / "init.ckpt"
    if level > 1 and chosen.epoch is None:
        path = _folder(folder, level - 1) / "last.ckpt"
    elif level > 1 and chosen.epoch:
        path = _folder(folder, 1) / f"epoch-{chosen.epoch}.ckpt"
    state: dict[str, Tensor] = load_checkpoint(path)["model"]
    return state
