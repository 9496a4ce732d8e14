"""The masks of `tickets.py`: found by `pathex.prune` in one process or in several, kept as files."""

import hashlib
import multiprocessing
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from ticket_network import Network

import pathex
from pathex import Mask, scores
from pathex.data import ImageData
from pathex.errors import InvalidInput, PathexWarning

__all__ = ["DENSE", "Spec", "find_masks", "parse_method"]

DENSE = "dense"
_PRUNE_OPTIONS = ("rounds", "allocation", "schedule", "budget", "min_per_layer")
_BATCH = 256  # methods that are defined on train-mode BatchNorm were published with batches of this size

_Job = tuple["Spec", Network, Any, Any, str, Path | None]


@dataclass(frozen=True)
class Spec:
    """One ticket: a method with its options (or `DENSE`, or a file of a mask), the seed, and the fraction removed."""

    label: str
    seed: int
    sparsity: float


def parse_method(label: str) -> tuple[str, dict[str, Any]]:
    """Method and options of a label such as ``px:redraw=true,rounds=20``; checked.

    Args:
        label: The label; option values are read as YAML.

    Returns:
        Name and options, those of the method and of ``pathex.prune``.

    Raises:
        InvalidInput: If the file of a mask is missing or `DENSE` has options.
    """
    if label.endswith(".safetensors"):
        if not Path(label).is_file():
            raise InvalidInput(f"mask {label!r}: no such file")
        return label, {}
    name, _, text = label.partition(":")
    options = {
        key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in text.split(",") if pair)
    }
    if name == DENSE and options:
        raise InvalidInput(f"{DENSE!r} has no options, got {text!r}")
    if name != DENSE:
        scores.find(name).check({key: value for key, value in options.items() if key not in _PRUNE_OPTIONS})
    return name, options


def find_masks(
    specs: Sequence[Spec],
    network: Network,
    data: ImageData,
    *,
    device: torch.device,
    images_per_class: int,
    folder: Path | None,
    jobs: int,
) -> dict[Spec, Mask | None]:
    """Prune every ticket that has no mask yet.

    Args:
        specs: The tickets.
        network: Their architecture.
        data: The images.
        device: Where to prune.
        images_per_class: Images of each class in the pruning set.
        folder: Where masks are kept, and found again; None keeps none.
        jobs: Processes. Pruning small networks is mostly work of the host, so that several share a GPU well.

    Returns:
        Ticket to mask (None keeps everything); its metadata hold ``dead_layers`` and ``prune_seconds``.
    """
    masks: dict[Spec, Mask | None] = {}
    todo: list[_Job] = []
    sets = {seed: pathex.data.pruning_set(data, images_per_class, seed) for seed in {spec.seed for spec in specs}}
    for spec in specs:
        chosen = sets[spec.seed]
        path = None if folder is None else folder / _file_name(spec, network, chosen.hash)
        if spec.label == DENSE:
            masks[spec] = None
        elif spec.label.endswith(".safetensors"):
            masks[spec] = Mask.load(spec.label)
        elif path is not None and path.exists():
            masks[spec] = Mask.load(path)
        else:
            todo.append((spec, network, chosen.images.numpy(), chosen.labels.numpy(), str(device), path))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if jobs > 1 and len(todo) > 1:
        with ProcessPoolExecutor(min(jobs, len(todo)), mp_context=multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(_find, todo))
    else:
        found = [_find(job) for job in todo]
    if todo:
        print(f"pruned {len(todo)} tickets in {time.monotonic() - began:.1f} s", flush=True)
    return {**masks, **{job[0]: mask for job, mask in zip(todo, found, strict=True)}}


def _file_name(spec: Spec, network: Network, pruning_set: str) -> str:
    exact = hashlib.sha256(repr((spec, network, pruning_set)).encode()).hexdigest()[:10]
    plain = re.sub(r"[^A-Za-z0-9.=]+", "-", f"{spec.label}-{spec.sparsity:g}-{spec.seed}")
    return f"{plain}-{exact}.safetensors"


def _find(job: _Job) -> Mask:
    spec, network, images, labels, device, path = job
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # each process would otherwise start as many threads as there are cores
    warnings.simplefilter("ignore", PathexWarning)
    name, options = parse_method(spec.label)
    x, y = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    model = network.create(spec.seed).to(device)
    began = time.perf_counter()
    result = pathex.prune(
        model,
        name,
        sparsity=spec.sparsity,
        data=list(zip(x.split(_BATCH), y.split(_BATCH), strict=True)),
        seed=spec.seed,
        progress=False,
        **options,
    )
    known: Mapping[str, Any] = {
        "dead_layers": len(result.report.dead_layers),
        "prune_seconds": round(time.perf_counter() - began, 2),
    }
    mask = Mask(result.mask, {**result.mask.metadata, **known})
    if path is not None:
        mask.save(path)
    return mask
