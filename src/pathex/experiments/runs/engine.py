"""Which engine trains a run: dense, or by the kept weights alone; chosen once, and written into its folder."""

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from pathex import sparse
from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.experiments.runs.config import RunConfig
from pathex.experiments.runs.folder import read_json
from pathex.experiments.runs.tickets import DENSE, Stage
from pathex.files import write_json
from pathex.graph import copied
from pathex.masks import Mask, make_permanent
from pathex.tasks import Task, kind
from pathex.train import check_machine, memory_format

FILE = "engine.json"
_ROUNDS = 3


def check_engine(config: RunConfig) -> None:
    """Refuse the sparse engine where it cannot train a run."""
    if config.engine == "sparse" and (why := _obstacle(config)):
        raise InvalidInput(f"engine is 'sparse', and {why}; allowed: auto, dense")


def _obstacle(config: RunConfig) -> str:
    """Why a run can only be trained dense, if so."""
    moves = config.dynamic != "none"
    for stands, why in (
        (config.method in DENSE, f"method {config.method!r} keeps all weights"),
        (importlib.util.find_spec("numba") is None, "numba is not installed: pip install 'pathex[sparse]'"),
        (check_machine(config.device) != "cpu" or config.devices != 1, "it works on one CPU"),
        (config.precision not in ("32-true", "64-true"), f"precision is {config.precision!r}"),
        (kind(config.task, config.data) != "classification", "it is for task 'classification'"),
        # These know a weight by its place among those that are kept, which moves.
        (moves and config.average != "none", f"dynamic is {config.dynamic!r} with average {config.average!r}"),
        (moves and config.remedy in ("ham", "sign-in"), f"dynamic is {config.dynamic!r} with remedy {config.remedy!r}"),
    ):
        if stands:
            return why
    return ""


def settle(stage: Stage, mask: Mask | None) -> dict[str, Any]:
    """The plan of a training: ``engine``, ``why``, ``threads``, ``layers``; from its folder or made and written now."""
    path = stage.folder / FILE
    if path.exists():
        return read_json(path)
    config, plan = stage.config, {"engine": "dense", "threads": torch.get_num_threads(), "layers": {}}
    if mask is None or config.engine == "dense" or (stage.folder / "last.ckpt").exists():
        return {**plan, "why": "as asked for"}
    why = _obstacle(config)
    if not why:
        try:
            plan, why = _measured(stage, mask, plan)
        except UnsupportedOperation as error:
            why = str(error)
            if config.engine == "sparse":
                raise InvalidInput(f"engine is 'sparse': {error}; allowed: auto, dense") from error
    plan["why"] = why
    if stage.fabric.is_global_zero:
        write_json(path, plan)
    stage.journal("engine", plan)
    return plan


def _measured(stage: Stage, mask: Mask, plan: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The plan, and its reason."""
    config, own = stage.config, stage.task.model
    feed = stage.task.feed("train", torch.device("cpu"), config.batch_size)
    assert feed is not None
    inputs, targets = next(iter(feed.in_order()))
    loss = stage.task.loss(config.loss, config.label_smoothing)
    with torch.random.fork_rng(devices=[]):
        choice = "sparse" if config.engine == "sparse" else None  # not measured, and the same everywhere
        net = sparse.convert(own, mask, inputs, threads=plan["threads"], choice=choice)
        layers = sparse.plan(net)
        if choice is not None:
            return {**plan, "engine": "sparse", "layers": layers}, "as asked for"
        dense = make_permanent(copied(own), mask)
        dense.to(memory_format=memory_format(dense))
        spent: dict[str, list[float]] = {"dense": [], "sparse": []}
        for _ in range(_ROUNDS + 1):
            for name, network in (("dense", dense), ("sparse", net)):
                began = time.perf_counter()
                x = inputs.contiguous(memory_format=memory_format(dense)) if name == "dense" else inputs
                loss(network.train()(x), targets).backward()
                spent[name].append(time.perf_counter() - began)
    seconds = {name: round(median(each[1:]), 4) for name, each in spent.items()}
    engine = min(seconds, key=seconds.__getitem__)
    why = f"a step takes {1000 * seconds['sparse']:.0f} ms sparse, {1000 * seconds['dense']:.0f} ms dense"
    return {**plan, "engine": engine, "layers": layers if engine == "sparse" else {}}, why


@contextmanager
def trained_by(plan: dict[str, Any], task: Task, mask: Mask | None) -> Iterator[Task]:
    """The task with the network that trains by a plan; the task's own has its weights at the end."""
    if plan["engine"] == "dense" or mask is None:
        yield task
        return
    net = sparse.convert(task.model, mask, task.example, threads=plan["threads"], choice=plan["layers"])
    yield replace(task, model=net)
    task.model.load_state_dict(net.state_dict())


def holder(mask: Mask) -> Any:
    """In place of the handle of a mask, for a network that has no other weights."""
    return SimpleNamespace(mask=mask)
