"""Where a run's ticket comes from, each taken up where the last process left it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pathex.analysis import PruneReport, examine, flipped, shuffled
from pathex.errors import InvalidInput
from pathex.experiments.runs.config import RunConfig
from pathex.experiments.runs.folder import ADVICE, read_json
from pathex.experiments.runs.rewind import OPTIONS, rewind, rewound_mask
from pathex.experiments.runs.tickets import DENSE, Stage, build_task, find_ticket, pruning_seed
from pathex.files import changed, digest, write_json, write_lines
from pathex.masks import Mask, prunable_weights
from pathex.pruning import searches
from pathex.tasks import Task
from pathex.train import epoch_seed

SEARCH = "search.ckpt"
"""What a method that searches goes on from."""

TRAINED = tuple(OPTIONS)
"""Methods that find their mask by training."""


@dataclass(frozen=True)
class Ticket:
    """A mask and what is known of it."""

    mask: Mask | None
    kept: int
    total: int
    rounds: int
    seconds: float
    report: Mapping[str, Any]


def find(stage: Stage) -> Ticket:
    """The ticket of a run: from its folder if it is there, otherwise found and written there."""
    if stage.config.method in DENSE:
        weights = prunable_weights(stage.task.model, ignore=stage.task.unprunable).values()
        report = {"dead_layers": [], "dead_channels": {}, "disconnected": 0}
        return Ticket(None, sum(weight.numel() for weight in weights), stage.total, 0, 0.0, report)
    path = stage.folder / "mask.safetensors"
    begun = _check_images(stage)
    if stage.fabric.broadcast(path.exists()):
        stage.journal("resumed", {"stage": "pruned"})
    else:
        if begun:
            goes_on = "goes on" if (stage.folder / SEARCH).exists() else "starts again"
            stage.journal.note(f"pruning was stopped before its end and {goes_on}")
        _find_and_write(stage)
    stage.fabric.barrier()
    known, mask = read_json(stage.folder / "pruning.json"), Mask.load(path, stage.task.model)
    if damaged := changed(stage.folder, known.get("files", {})):
        raise InvalidInput(f"{stage.folder}: {damaged[0]}{ADVICE}")
    return Ticket(mask, mask.kept, mask.total, known["rounds"], known["seconds"], known["report"])


def _check_images(stage: Stage) -> bool:
    """Write which images scores see, or compare with what a stopped process wrote; tells whether there was one."""
    if stage.images is None:
        return False
    path, config = stage.folder / "pruning_set.json", stage.config
    there: dict[str, Any] | None = stage.fabric.broadcast(read_json(path) if path.exists() else None)
    if there is not None and there["hash"] != stage.images.hash:
        raise InvalidInput(f"data {config.data!r} changed since {stage.folder} was begun; delete it, or change 'out'")
    if there is None and stage.fabric.is_global_zero:
        chosen = {"seed": pruning_seed(config), "images_per_class": config.images_per_class, "hash": stage.images.hash}
        write_json(path, {**chosen, "indices": stage.images.indices})
    return there is not None


def _find_and_write(stage: Stage) -> None:
    config = stage.config
    report: PruneReport | None = None
    if config.method in TRAINED:
        mask, history = rewound_mask(replace(stage, task=stage.task.source_task()))
        seconds = round(sum(row["seconds"] for row in history), 3)
    else:
        assert stage.images is not None
        checkpoint = stage.folder / SEARCH if searches(config.method) else None
        result, seconds = find_ticket(config, stage.task, stage.images, stage.journal, checkpoint)
        mask, history, report = result.mask, result.history, result.report
    if config.sanity == "shuffle":
        mask, report = shuffled(mask, config.seed), None
        mask.metadata["sanity"] = "shuffle"
    report = report or examine(stage.task.model, mask, stage.task.example.to(stage.fabric.device))
    if stage.fabric.is_global_zero:
        write_lines(stage.folder / "history.jsonl", history)
        known = {"rounds": len(history), "seconds": seconds, "report": report.asdict()}
        known["files"] = {"history.jsonl": digest(stage.folder / "history.jsonl")}
        write_json(stage.folder / "pruning.json", known)
        # The mask is written last: where it is, pruning is over.
        mask.save(stage.folder / "mask.safetensors", model=config.model, data=config.data)
        (stage.folder / SEARCH).unlink(missing_ok=True)
    counts = {"seconds": seconds, "kept": mask.kept, "total": mask.total}
    stage.journal("prune_done", {**counts, "dead_layers": len(report.dead_layers)})


def task_at_start(config: RunConfig, folder: Path) -> Task:
    """The task of a run in a folder, its network at the weights that its ticket begins at."""
    task, path = build_task(config), folder / "mask.safetensors"
    if config.method in TRAINED:
        rewind(config, task, folder)
    alter_weights(config, task, Mask.load(path, task.model) if path.exists() else None)
    return task


@torch.no_grad()
def alter_weights(config: RunConfig, task: Task, mask: Mask | None) -> None:
    """Give a ticket other weights than those it was found on, where ``sanity`` asks for it."""
    if config.sanity == "reinit":
        task.model.load_state_dict(task.create(epoch_seed(config.seed, 1)).state_dict())
    elif config.sanity == "flip-signs":
        task.model.load_state_dict(flipped(task.model, config.seed, names=mask), strict=False)
