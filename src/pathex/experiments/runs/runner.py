"""Prune, train, evaluate: the stages of a run, each taken up where the last process left it."""

import contextlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pathex.analysis import count, examine
from pathex.distributed import is_first_process, launched
from pathex.errors import InvalidInput, PathexError, PathexWarning, refusing
from pathex.experiments.runs.config import RunConfig, run_name, settings
from pathex.experiments.runs.engine import holder, settle, trained_by
from pathex.experiments.runs.folder import (
    Journal,
    digests,
    environment,
    finished_result,
    locked,
    read_json,
    write_config,
)
from pathex.experiments.runs.inputs import INPUTS, changes, check_same, clear, inputs
from pathex.experiments.runs.probe import Probe
from pathex.experiments.runs.rewind import rewind
from pathex.experiments.runs.small_dense import shrunk
from pathex.experiments.runs.stages import SEARCH, TRAINED, Ticket, alter_weights, find
from pathex.experiments.runs.tickets import DENSE, Stage, build_task, pruning_seed, train_options
from pathex.experiments.runs.validation import check_config
from pathex.files import write_json
from pathex.masks import Handle, Mask, attach, bytes_on_disk, prunable_weights
from pathex.pruning import dynamic
from pathex.tasks import Task
from pathex.train import Events, check_machine, fabric, pace, tracked


@dataclass(frozen=True)
class RunResult:
    """The folder of a finished run, and the content of its ``result.json``."""

    folder: Path
    result: dict[str, Any]


def run(config: RunConfig, *, on_event: Events | None = None) -> RunResult:
    """Carry out a run, or what is left of it.

    The same settings lead to the same folder; code or files that changed since are an error, or with ``fresh`` a new
    beginning. A run that is done is returned at once; one that was stopped continues with its mask and its last whole
    epoch, and ends with the same numbers (on the CPU bit for bit, with as many threads). Pruning that was stopped
    starts again, as it is deterministic; a search goes on.

    Args:
        config: Settings of the run.
        on_event: Receives ``(kind, payload)``: ``resumed`` {stage, ...}, ``prune_round`` {round, rounds, density},
            ``search_step`` {step, steps} of methods that search, ``prune_done`` {seconds, kept, total, dead_layers},
            ``engine`` {engine, why, ...}, ``narrowed`` {width, parameters, multiply_adds} of ``small-dense``, ``step``
            {epoch, epochs, step, steps} a few times in a second, ``epoch`` {epoch, epochs, train_loss, train_<metric>,
            ...}, ``done`` {result, folder}. Steps and epochs of trainings that find a mask have ``level`` and
            ``levels``, those of a transfer ``task``, ``target`` and ``targets``. Of several processes only the first
            calls it.

    Returns:
        Folder and result.
    """
    check_config(config)
    folder = Path(config.out) / run_name(config)
    if not config.fresh:
        check_same(folder, config)
    result = None if config.fresh and changes(folder, config) else finished_result(folder)
    if result is None:
        with launched(config.devices, run, config):
            result = _carry_out(config, folder, on_event)
    elif on_event is not None and is_first_process():
        on_event("resumed", {"stage": "done"})
        on_event("done", {"result": result, "folder": str(folder)})
    return RunResult(folder, result)


def settle_threads(config: RunConfig, threads: int | None = None) -> None:
    """As many threads as the run was begun with, or these, or as many as pay; left alone on GPUs and in processes."""
    if config.devices == 1 and check_machine(config.device) == "cpu":
        begun = Path(config.out) / run_name(config) / "environment.json"
        torch.set_num_threads(read_json(begun)["threads"] if begun.exists() else threads or pace(True)[0])


def _carry_out(config: RunConfig, folder: Path, on_event: Events | None) -> dict[str, Any]:
    made_from = inputs(config)
    # Before the processes meet: what is wrong with the data then shows in each of them, and none waits for another.
    task = build_task(config, config.validation)
    machine = fabric(config.device, config.precision, devices=config.devices, strategy=config.strategy)
    total = sum(weight.numel() for weight in prunable_weights(task.model, ignore=task.unprunable).values())
    width = None
    if config.method == "small-dense":
        narrow = shrunk(config, task)
        task, width = build_task(narrow, config.validation), narrow.model_options["width"]
    _check_training(config, task)
    task.model.to(machine.device)
    scored = config.method not in (*DENSE, *TRAINED)
    images = task.pruning_set(config.images_per_class, pruning_seed(config)) if scored else None
    with contextlib.ExitStack() as stack:
        journal = Journal(None, None)
        if machine.is_global_zero:  # the folder belongs to the first process; the others wait for it
            stack.enter_context(_held_folder(folder))
            if config.fresh and changes(folder, config):
                clear(folder)
            journal = stack.enter_context(Journal(folder, on_event))
            stack.enter_context(tracked(machine, config.logger, folder, settings(config)))
        machine.barrier()
        result: dict[str, Any] | None = machine.broadcast(finished_result(folder))
        if result is None:
            if machine.is_global_zero:
                computed_with = {**environment(machine.device), "processes": machine.world_size}
                write_json(folder / INPUTS, made_from)
                write_config(folder, config)
                write_json(folder / "environment.json", computed_with)
                journal.note(f"start of {folder.name} with {computed_with}")
            result = _complete(Stage(config, folder, task, images, machine, journal, total, width))
            if machine.is_global_zero:
                test = f"test_{result['metric']}"
                machine.log_dict({test: result[test]}, step=config.epochs)
                write_json(folder / "result.json", {**result, "files": digests(folder)})
        journal("done", {"result": result, "folder": str(folder)})
    return result


def _check_training(config: RunConfig, task: Task) -> None:
    """Refuse now what the training would refuse after pruning."""
    if config.kernel_every:
        with refusing(f"kernel_images is {config.kernel_images}: {{}}", InvalidInput):
            task.pruning_set(config.kernel_images, seed=0)
    options = task.augmented(train_options(config))
    task.groups(options)
    augment, chosen = options.augment, options.augment_options
    task.feed("train", torch.device("cpu"), config.batch_size, augment=augment, augment_options=chosen)


def _complete(stage: Stage) -> dict[str, Any]:
    """The stages of a run, which every process goes through alike."""
    ticket = find(stage)
    start = rewind(stage.config, stage.task, stage.folder) if stage.config.method in TRAINED else 0
    alter_weights(stage.config, stage.task, ticket.mask)
    costs = _costs(stage.task, ticket)
    if stage.width is not None:
        stage.journal("narrowed", {"width": stage.width, **costs})
    plan = settle(stage, ticket.mask)
    model, rows, moved = _train(stage, ticket, start, plan)
    measured = stage.task.test(model, fabric=stage.fabric, batch_size=stage.config.batch_size)
    return _result(stage, ticket, rows, {**measured, "engine": plan["engine"], **costs, **_final(stage, ticket, moved)})


def _costs(task: Task, ticket: Ticket) -> dict[str, int | None]:
    """Bytes, parameters and multiply-adds (for one image) of the masked network; None where they cannot be counted."""
    known: dict[str, int | None] = {"bytes": bytes_on_disk(task.model, ticket.mask)}
    try:
        counts = count(task.model, tuple(task.example.shape[1:]))
    except PathexError as error:
        warnings.warn(f"multiply-adds are not counted: {error}", PathexWarning, stacklevel=2)
        return {**known, "parameters": None, "multiply_adds": None}
    mask = ticket.mask
    return {**known, "parameters": counts.parameters(mask), "multiply_adds": counts.multiply_adds(mask)}


@contextlib.contextmanager
def _held_folder(folder: Path) -> Iterator[None]:
    """The run's folder, locked; if it is new and bad input shows before there is a ticket, nothing of it stays."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    with refusing(f"out: the folder {folder} cannot be made ({{}})", OSError):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):  # who does not hold it deletes nothing
        try:
            yield
        except PathexError:
            marks = ("mask.safetensors", SEARCH, "last.ckpt", "levels", "tasks")
            begun = any((folder / name).exists() for name in marks)
            if folder in new and not begun:
                shutil.rmtree(folder)
                with contextlib.suppress(OSError):  # another run may have begun beside this one
                    for parent in new[1:]:
                        parent.rmdir()
            raise


def _train(
    stage: Stage, ticket: Ticket, start: int, plan: dict[str, Any]
) -> tuple[nn.Module, list[dict[str, Any]], dynamic.DynamicHandle | None]:
    options = replace(train_options(stage.config), start=start)
    handles: list[Handle] = []
    probe = _probe(stage, lambda: handles[-1].mask if handles else ticket.mask)

    def prepare(model: nn.Module, optimizer: Optimizer) -> object:
        held: object = None
        if plan["engine"] == "sparse" and stage.config.dynamic == "none":
            held = None if ticket.mask is None else holder(ticket.mask)
        elif ticket.mask is not None:
            handles.append(_attach(stage, ticket.mask, model, optimizer, start))
            held = handles[-1]
        if probe is not None:
            probe.begin(model)
        return held

    with trained_by(plan, stage.task, ticket.mask) as task:
        model, rows = replace(task, observe=probe).train(
            options, fabric=stage.fabric, folder=stage.folder, prepare=prepare, on_event=stage.journal
        )
    if task is not stage.task:
        model = stage.fabric.setup_module(stage.task.model)  # dense, in the precision of the training
    moved = [handle for handle in handles if isinstance(handle, dynamic.DynamicHandle)]
    return model, rows, moved[-1] if moved else None


def _probe(stage: Stage, mask: Callable[[], Mask | None]) -> Probe | None:
    config = stage.config
    if not config.kernel_every:
        return None
    return Probe(stage.task.pruning_set(config.kernel_images, seed=0), config.kernel_every, config.epochs, mask)


def _final(stage: Stage, ticket: Ticket, moved: dynamic.DynamicHandle | None) -> dict[str, Any]:
    """The mask that a dynamic training ends with, written down; layers keep their counts, and so the network costs."""
    if moved is None or ticket.mask is None:
        return {}
    mask = moved.mask
    if stage.fabric.is_global_zero:
        mask.save(stage.folder / "final_mask.safetensors", model=stage.config.model, data=stage.config.data)
    report = examine(stage.task.model, mask, stage.task.example.to(stage.fabric.device))
    return {
        "mask_updates": moved.updates,
        "final_overlap": (mask & ticket.mask).kept / max(1, mask.kept),
        "final_dead_layers": len(report.dead_layers),
        "final_disconnected": report.disconnected,
    }


def _attach(stage: Stage, mask: Mask, model: nn.Module, optimizer: Optimizer, start: int) -> Handle:
    config = stage.config
    if config.dynamic == "none":
        return attach(model, mask, optimizer)
    feed = stage.task.feed("train", torch.device("cpu"), config.batch_size)
    assert feed is not None
    steps = max(1, feed.batches * (config.epochs - start))
    every, until = ({**dynamic.OPTIONS, **config.dynamic_options}[name] for name in ("every", "until"))
    if every >= until * steps:
        message = f"the mask never moves: every is {every}, and updates end before step {until * steps:g}"
        warnings.warn(message, PathexWarning, stacklevel=2)
    return dynamic.attach(
        model, mask, optimizer, method=config.dynamic, steps=steps, seed=config.seed, **config.dynamic_options
    )


def _result(stage: Stage, ticket: Ticket, rows: list[dict[str, Any]], measured: Mapping[str, Any]) -> dict[str, Any]:
    config, metric, last = stage.config, stage.task.metric_name, rows[-1] if rows else {}
    if "task" in last:  # the last of several trainings says nothing about all of them
        last = {}
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
        "metric": metric,
        **measured,
        **({} if stage.width is None else {"width": stage.width}),
        **{name: last[name] for name in (f"val_{metric}", f"train_{metric}", "train_loss") if name in last},
        "prune_seconds": ticket.seconds,
        "train_seconds": round(sum(row["seconds"] for row in rows), 3),
        "dead_layers": len(dead),
        "dead_layer_names": dead,
        "dead_channels": sum(map(len, ticket.report["dead_channels"].values())),
        "dead_outputs": len(ticket.report.get("dead_outputs", ())),  # which earlier versions do not count
        "disconnected": ticket.report["disconnected"],
        "epochs": config.epochs,
        "rounds": ticket.rounds,
        **{name: getattr(config, name) for name in ("allocation", "images_per_class", "batch_size")},
        "precision": config.precision,
        "weights": config.weights,
        **stage.task.facts(),
    }
