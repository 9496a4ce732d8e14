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
from pathex.experiments.runs.engine import holder, settle, trained_by
from pathex.experiments.runs.folder import read_json
from pathex.experiments.runs.tickets import Stage, prune_options, start_mask, train_options
from pathex.files import write_json
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
    if text in ("init", "learning-rate"):
        return 0 if text == "init" else None
    kind, _, number = str(text).partition(":")
    if kind != "epoch" or not number.isdecimal() or int(number) > most:
        raise InvalidInput(f"rewind is {text!r}; allowed: init, learning-rate, or epoch:K with K from 0 to {most}")
    return int(number)


def rewound_mask(stage: Stage) -> tuple[Mask, list[dict[str, Any]]]:
    """Find a mask by training, or go on where another process stopped."""
    config, fabric = stage.config, stage.fabric
    chosen = plan(config)
    mask = start_mask(config, stage.task)
    before = 1.0 if mask is None else mask.density
    count = chosen.count((1 - config.sparsity) / before)
    steps = densities(before, 1 - config.sparsity, count, config.schedule)
    sparsities = [*(1 - density for density in steps[:-1]), config.sparsity]
    if not fabric.broadcast((stage.folder / "levels").exists()):
        _try_out(stage, mask, sparsities)
    # The initialization is written once: every process and every later one rewinds to the same tensors.
    path = stage.folder / "levels" / "init.ckpt"
    if fabric.is_global_zero and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {"model": stage.task.model.state_dict()})
    fabric.barrier()
    rows = []
    for number, sparsity in enumerate(sparsities, 1):
        place = {"level": number, "levels": count}
        folder = _folder(stage.folder, number)
        if fabric.broadcast((folder / "mask.safetensors").exists()):
            stage.journal("resumed", {"stage": "level", **place})
            mask, row = Mask.load(folder / "mask.safetensors", stage.task.model), read_json(folder / "level.json")
        else:
            mask, row = _carry_out(stage, chosen, place, mask, sparsity)
        rows.append(row)
        stage.journal("prune_round", {"round": number, "rounds": count, "density": mask.density})
    assert mask is not None
    mask.metadata.update(method=config.method, options=dict(config.method_options), rounds=count, seed=config.seed)
    return mask, rows


def rewind(config: RunConfig, task: Task, folder: Path) -> int:
    """Put the network where the run's own training begins; called in every process, also when the mask was there."""
    chosen = plan(config)
    last = len(list((folder / "levels").glob("[0-9]*/mask.safetensors")))
    task.model.load_state_dict(_state(chosen, folder, last + 1))
    return chosen.epoch or 0


def _carry_out(
    stage: Stage, chosen: Plan, place: dict[str, int], mask: Mask | None, sparsity: float
) -> tuple[Mask, dict[str, Any]]:
    """One training, and the mask that it leaves."""
    model, fabric = stage.task.model, stage.fabric
    folder = _folder(stage.folder, place["level"])
    if fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
    fabric.barrier()
    model.load_state_dict(_state(chosen, stage.folder, place["level"]))
    if mask is not None:
        make_permanent(model, mask)
    rows = _train(stage, chosen, place, mask, folder)
    began = time.monotonic()
    found, known = _pruned(stage, mask, sparsity)
    seconds = sum(row["seconds"] for row in rows) + time.monotonic() - began
    last = {name: value for name, value in (rows[-1] if rows else {}).items() if name not in {"epoch", "lr"}}
    row = {**last, **known, "round": place["level"], "rounds": place["levels"], "seconds": round(seconds, 3)}
    if fabric.is_global_zero:
        write_json(folder / "level.json", row)
        # The mask is written last: where it is, the level is over.
        found.save(folder / "mask.safetensors")
    fabric.barrier()
    return found, row


def _train(stage: Stage, chosen: Plan, place: dict[str, int], mask: Mask | None, folder: Path) -> list[dict[str, Any]]:
    handles: list[Handle] = []
    by = settle(replace(stage, folder=folder), mask)

    def prepare(model: nn.Module, optimizer: Optimizer) -> object:
        if mask is None:
            return None
        if by["engine"] == "sparse":
            return holder(mask)
        handles.append(attach(model, mask, optimizer))
        return handles[-1]

    def report(kind: str, payload: dict[str, Any]) -> None:
        stage.journal(kind, {**payload, **place})

    epoch, options = chosen.epoch or 0, replace(train_options(stage.config), epochs=chosen.epochs)
    if place["level"] > 1:
        options = replace(options, start=epoch)
    elif epoch:
        options = replace(options, keep=(epoch,))
    dtype = next(stage.task.model.parameters()).dtype
    try:
        with trained_by(by, stage.task, mask) as task:
            _, rows = task.train(options, fabric=stage.fabric, folder=folder, prepare=prepare, on_event=report)
    finally:
        for handle in handles:
            handle.remove()
    # Of several processes each has BatchNorm statistics of its own; the first one's count, as in the checkpoint.
    stage.task.model.to(dtype).load_state_dict(load_checkpoint(folder / "last.ckpt")["model"])
    stage.task.model.zero_grad(set_to_none=True)
    stage.task.model.eval()
    return rows


def _pruned(stage: Stage, mask: Mask | None, sparsity: float) -> tuple[Mask, dict[str, Any]]:
    options = {**prune_options(stage.config, stage.task), "sparsity": sparsity}
    example = stage.task.example.to(stage.fabric.device)
    result = prune(stage.task.model, "magnitude", data=example, rounds=1, mask=mask, **options)
    return result.mask, result.history[-1]


def _try_out(stage: Stage, mask: Mask | None, sparsities: Sequence[float]) -> None:
    """Go through all levels without training, so that settings that pruning refuses show before the first of them."""
    lenient = replace(stage, config=replace(stage.config, strict=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sparsity in sparsities:
            mask, _ = _pruned(lenient, mask, sparsity)


def _folder(folder: Path, level: int) -> Path:
    return folder / "levels" / f"{level:02}"


def _state(chosen: Plan, folder: Path, level: int) -> dict[str, Tensor]:
    """The network's state where the training of a level begins; the run's own follows the last level."""
    path = folder / "levels" / "init.ckpt"
    if level > 1 and chosen.epoch is None:
        path = _folder(folder, level - 1) / "last.ckpt"
    elif level > 1 and chosen.epoch:
        path = _folder(folder, 1) / f"epoch-{chosen.epoch}.ckpt"
    state: dict[str, Tensor] = load_checkpoint(path)["model"]
    return state
