"""A ticket in one small file: the mask, and what its initial network is made from again."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathex.errors import InvalidInput, MaskMismatch
from pathex.experiments.runs.folder import environment, finished_result, read_config, read_json
from pathex.experiments.runs.loading import build_network
from pathex.experiments.runs.stages import TRAINED
from pathex.masks import Mask, codes, read_weights, write_tensors
from pathex.tasks import initialised


def save_ticket(folder: str | Path, path: str | Path, model: Callable[..., nn.Module] | None = None) -> None:
    """Write the ticket of a finished run: its mask in a code, and the name, options and seed of its network.

    The file takes a few per cent more than the entropy of the mask, and no weights: the initial network follows from
    its seed.

    Args:
        folder: Folder of the run.
        path: The file, ``.safetensors``.
        model: What makes a network of the user's own code, as for `load_run`.

    Raises:
        InvalidInput: If the run is not finished, its ticket does not begin at the initial weights of its seed (it has
            no mask, started from a file of weights, was found by training, or has other weights by ``sanity``), or it
            was made by another version of torch.
    """
    folder = Path(folder)
    config, result = read_config(folder), finished_result(folder)
    if result is None or not (folder / "mask.safetensors").exists():
        raise InvalidInput(f"{folder} holds no finished run with a mask")
    reasons = {
        f"starts from weights {config.weights!r}": config.weights is not None,
        f"is of method {config.method!r}, which trains": config.method in TRAINED,
        f"has other weights (sanity is {config.sanity!r})": config.sanity in ("reinit", "flip-signs"),
        "is of task 'transfer'": "tasks" in result,
    }
    if said := [reason for reason, holds in reasons.items() if holds]:
        raise InvalidInput(f"the run in {folder} {said[0]}: a ticket file begins at the initial weights of a seed")
    there = read_json(folder / "environment.json").get("torch")
    if there != _version():
        raise InvalidInput(f"the run in {folder} was made with torch {there}, here is {_version()}")
    mask = Mask.load(folder / "mask.safetensors")
    facts = {
        "model": config.model,
        "options": config.model_options,
        "classes": len(result["classes"]),
        "channels": len(result["normalisation"]["mean"]),
        "seed": config.seed,
        "method": config.method,
        "torch": there,
    }
    facts["sha256"] = _digest(_initial(facts, model))
    write_tensors(codes.pack(mask, **facts), path)


def load_ticket(path: str | Path, model: Callable[..., nn.Module] | None = None) -> tuple[nn.Module, Mask]:
    """The initial network of a ticket, bit for bit, and its mask.

    Args:
        path: A file of `save_ticket`.
        model: What makes a network of the user's own code, as for `load_run`.

    Returns:
        The dense network, on the CPU, in eval mode, and the mask.

    Raises:
        MaskMismatch: If the file holds no ticket, or is damaged.
        InvalidInput: If the network cannot be made, or other initial weights come out (another version of torch may
            draw others).
    """
    entries, facts = codes.unpack(read_weights(Path(path)))
    if missing := [name for name in ("model", "seed", "sha256") if name not in facts]:
        raise MaskMismatch(f"{path} holds a mask and no ticket: there is no {missing[0]!r}")
    network = _initial(facts, model)
    if _digest(network) != facts["sha256"]:
        raise InvalidInput(
            f"{path}: the initial weights come out otherwise than with torch {facts['torch']}; here is {_version()}"
        )
    mask = Mask(entries, {"method": facts["method"], "model": facts["model"]})
    mask.check(network)
    return network, mask


def _initial(facts: dict[str, Any], model: Callable[..., nn.Module] | None) -> nn.Module:
    make = partial(build_network, facts["model"], facts["classes"], facts["channels"], facts["options"], model)
    return initialised(make, facts["seed"])


def _version() -> str:
    return str(environment(torch.device("cpu"))["torch"])


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
