"""Prune, train, evaluate: the stages of a run, each taken up where the last process left it."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pathex.attaching import attach
from pathex.data import PruningSet
from pathex.errors import InvalidInput, PathexError
from pathex.masks import Mask
from pathex.prunable import prunable_weights
from pathex.runs.config import RunConfig
from pathex.runs.environment import environment
from pathex.runs.folder import (
    Journal,
    check_same,
    finished_result,
    locked,
    read_json,
    write_config,
    write_json,
    write_lines,
)
from pathex.runs.naming import run_name, settings
from pathex.runs.tickets import build_task, find_ticket
from pathex.runs.validation import check_config
from pathex.tasks import Classification
from pathex.train import Events, TrainOptions, fabric

__all__ = ["RunResult", "run"]


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: The run's folder.
        result: The content of its ``result.json``.
    """

    folder: Path
    result: dict[str, Any]


def run(config: RunConfig, *, on_event: Events | None = None) -> RunResult:
    """Carry out a run, or what is left of it.

    The same settings lead to the same folder. A run that is done is returned at once; one that was stopped continues
    with its mask and its last whole epoch, and ends with the same numbers (on the CPU bit for bit, with as many
    threads). Pruning that was stopped starts again, as it is deterministic.

    Args:
        config: Settings of the run.
        on_event: Receives ``(kind, payload)``: ``resumed`` {stage, ...}, ``prune_round`` {round, rounds, density},
            ``prune_done`` {seconds, kept, total, dead_layers}, ``step`` {epoch, epochs, step, steps} a few times in a
            second, ``epoch`` {epoch, epochs, train_loss, train_accuracy, ...}, ``done`` {result, folder}.

    Returns:
        Folder and result.
    """
    check_config(config)
    folder = Path(config.out) / run_name(config)
    check_same(folder, config)
    if (result := finished_result(folder)) is None:
        result = _carry_out(config, folder, on_event)
    elif on_event is not None:
        on_event("resumed", {"stage": "done"})
        on_event("done", {"result": result, "folder": str(folder)})
    return RunResult(folder, result)


def _carry_out(config: RunConfig, folder: Path, on_event: Events | None) -> dict[str, Any]:
    task = build_task(config, config.validation)
    pruning_set = None if config.method == "dense" else task.pruning_set(config.images_per_class, config.seed)
    machine = fabric(config.device, config.precision)
    with _made(folder), locked(folder), Journal(folder, on_event) as journal:
        if (result := finished_result(folder)) is not None:  # another process may have ended it in the meantime
            journal("done", {"result": result, "folder": str(folder)})
            return result
        write_config(folder, config)
        computed_with = environment(machine.device)
        write_json(folder / "environment.json", computed_with)
        journal.note(f"start of {folder.name} with {computed_with}")
        task.model.to(machine.device)
        if pruning_set is None:
            ticket = _dense_ticket(task.model)
        else:
            ticket = _pruned_ticket(config, folder, task, pruning_set, journal)
        model, rows = _train(config, folder, task, ticket, machine=machine, journal=journal)
        accuracy = task.test(model, device=machine.device, batch_size=config.batch_size)
        result = _result(config, task, ticket, rows, accuracy)
        write_json(folder / "result.json", result)
        journal("done", {"result": result, "folder": str(folder)})
    return result


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The run's folder; if it is new and bad input shows before there is a ticket, nothing of it stays."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"out: the folder {folder} cannot be made ({error.strerror})") from error
    try:
        yield
    except PathexError:
        begun = any((folder / name).exists() for name in ("mask.safetensors", "last.ckpt"))
        if folder in new and not begun:
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # another run may have begun beside this one
                for parent in new[1:]:
                    parent.rmdir()
        raise


@dataclass(frozen=True)
class _Ticket:
    """A mask (None keeps everything) and what is known of it."""

    mask: Mask | None
    kept: int
    total: int
    rounds: int
    seconds: float
    report: Mapping[str, Any]


def _dense_ticket(model: nn.Module) -> _Ticket:
    total = sum(weight.numel() for weight in prunable_weights(model).values())
    report = {"dead_layers": [], "dead_channels": {}, "disconnected": 0}
    return _Ticket(None, kept=total, total=total, rounds=0, seconds=0.0, report=report)


def _pruned_ticket(
    config: RunConfig, folder: Path, task: Classification, images: PruningSet, journal: Journal
) -> _Ticket:
    path, chosen = folder / "mask.safetensors", folder / "pruning_set.json"
    if chosen.exists() and read_json(chosen)["hash"] != images.hash:
        raise InvalidInput(f"data {config.data!r} changed since {folder} was begun; delete it, or choose another 'out'")
    if path.exists():
        journal("resumed", {"stage": "pruned"})
    else:
        if chosen.exists():
            journal.note("pruning was stopped before its end and starts again")
        _prune(config, folder, task, images, journal)
    known, mask = read_json(folder / "pruning.json"), Mask.load(path, task.model)
    return _Ticket(mask, mask.kept, mask.total, known["rounds"], known["seconds"], known["report"])


def _prune(config: RunConfig, folder: Path, task: Classification, images: PruningSet, journal: Journal) -> None:
    chosen = {"seed": config.seed, "images_per_class": config.images_per_class, "hash": images.hash}
    write_json(folder / "pruning_set.json", {**chosen, "indices": images.indices})
    result, seconds = find_ticket(config, task, images, lambda known: journal("prune_round", known))
    write_lines(folder / "history.jsonl", result.history)
    write_json(
        folder / "pruning.json", {"rounds": len(result.history), "seconds": seconds, "report": result.report.asdict()}
    )
    # The mask is written last: where it is, pruning is over.
    result.mask.save(folder / "mask.safetensors", model=config.model, data=config.data)
    known = {"seconds": seconds, "kept": result.mask.kept, "total": result.mask.total}
    journal("prune_done", {**known, "dead_layers": len(result.report.dead_layers)})


def _train(
    config: RunConfig, folder: Path, task: Classification, ticket: _Ticket, *, machine: Any, journal: Journal
) -> tuple[nn.Module, list[dict[str, Any]]]:
    mask = ticket.mask
    options = TrainOptions(
        epochs=config.epochs,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        milestones=tuple(config.milestones),
        gamma=config.gamma,
        augment=config.augment,
        seed=config.seed,
    )
    return task.train(
        options,
        fabric=machine,
        folder=folder,
        batch_size=config.batch_size,
        label_smoothing=config.label_smoothing,
        prepare=None if mask is None else lambda model, optimizer: attach(model, mask, optimizer),
        on_event=journal,
    )


def _result(
    config: RunConfig, task: Classification, ticket: _Ticket, rows: list[dict[str, Any]], accuracy: float
) -> dict[str, Any]:
    last = rows[-1] if rows else {}
    dead = ticket.report["dead_layers"]
    return {
        "status": "done",
        "method": config.method,
        "sparsity": settings(config)["sparsity"],
        "model": config.model,
        "data": config.data,
        "seed": config.seed,
        "kept": ticket.kept,
        "total": ticket.total,
        "test_accuracy": accuracy,
        "test_images": len(task.data.test),
        **{name: last[name] for name in ("val_accuracy", "train_accuracy", "train_loss") if name in last},
        "prune_seconds": ticket.seconds,
        "train_seconds": round(sum(row["seconds"] for row in rows), 3),
        "dead_layers": len(dead),
        "dead_layer_names": dead,
        "dead_channels": sum(ticket.report["dead_channels"].values()),
        "disconnected": ticket.report["disconnected"],
        "epochs": config.epochs,
        "rounds": ticket.rounds,
        "allocation": config.allocation,
        "images_per_class": config.images_per_class,
        "batch_size": config.batch_size,
        "precision": config.precision,
        "weights": config.weights,
        "normalisation": {"mean": task.data.mean.tolist(), "std": task.data.std.tolist()},
        "classes": list(task.data.classes),
    }
