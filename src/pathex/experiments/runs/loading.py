"""From the folder of a run to its network, and to its ticket in one small file."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathex import models
from pathex.errors import InvalidInput, MaskMismatch, check_integer, import_callable, refusing
from pathex.experiments.runs.conformity import check_types
from pathex.experiments.runs.folder import ADVICE, environment, finished_result, read_config, read_json
from pathex.experiments.runs.stages import TRAINED
from pathex.files import SEAL, write_safetensors
from pathex.masks import Mask, check_format, codes, make_permanent, read_weights
from pathex.tasks import initialised
from pathex.train import load_checkpoint

_FACTS = {"model": str, "options": dict, "classes": int, "channels": int, "seed": int, "method": str, "sha256": str}


@dataclass(frozen=True)
class Preprocessing:
    """What images a network was trained on: pixels in [0, 1], resized, normalised by channel.

    Attributes:
        size: Side in pixels; None in folders of version 0.1, which do not tell.
        mean: Mean by channel.
        std: Standard deviation by channel.
        classes: Names of the classes, in the order of the outputs.
    """

    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]


def load_run(folder: str | Path, model: Callable[..., nn.Module] | None = None) -> nn.Module:
    """The trained network of a finished run, with its mask's zeros.

    Code that the folder names is not imported, except by a command with ``--trust-code``: names that pathex knows are
    made, and a network of the user's own code is given.

    Args:
        folder: Folder of a run of classification or segmentation.
        model: What makes the network, called like ``package.module:factory`` of a run: with ``num_classes``,
            ``in_channels`` and the run's ``model_options``, as far as it takes them. None: made by its name.

    Returns:
        The network, on the CPU, in eval mode, in the precision in which it is made, whatever the run trained in; its
        ``preprocessing`` is a `Preprocessing`.

    Raises:
        InvalidInput: If the run is not finished, its network is not known by name and not given, or the weights do not
            fit it.

    Examples:
        >>> network = load_run("runs/px-resnet20-fashion-mini-s0.9-1b2c3d4e")  # doctest: +SKIP
        >>> network.preprocessing.size  # doctest: +SKIP
        28
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InvalidInput(f"no such folder: {folder}")
    if not (folder / "config.yaml").exists():
        raise InvalidInput(f"{folder} is no folder of a run: it holds no config.yaml")
    config, result = read_config(folder), finished_result(folder)
    if result is None:
        raise InvalidInput(f"the run in {folder} is not finished; the same command of pathex run goes on with it")
    if "tasks" in result:
        raise InvalidInput(f"{folder} holds a run of task 'transfer', which has a network for each of its targets")
    options = dict(config.model_options)
    if "width" in result:  # of a small dense network
        options["width"] = result["width"]
    about = _preprocessing(folder, result)
    network = build_network(config.model, len(about.classes), len(about.mean), options, model)
    with refusing(f"the weights of {folder} do not fit: {{}}", RuntimeError, LookupError, TypeError):
        network.load_state_dict(load_checkpoint(folder / "last.ckpt")["model"])
    masks = [folder / name for name in ("final_mask.safetensors", "mask.safetensors") if (folder / name).exists()]
    if masks:
        make_permanent(network, Mask.load(masks[0], network))
    network.preprocessing = about  # type: ignore[assignment]
    return network.eval()


def _preprocessing(folder: Path, result: dict[str, Any]) -> Preprocessing:
    with refusing(f"{folder / 'result.json'} cannot be read ({{}}){ADVICE}"):
        mean, std = (tuple(result["normalisation"][part]) for part in ("mean", "std"))
        about = Preprocessing(result.get("image_size", result.get("crop")), mean, std, tuple(result["classes"]))
        check_types(about)
        return about


def build_network(
    name: str, classes: int, channels: int, options: dict[str, Any], model: Callable[..., nn.Module] | None
) -> nn.Module:
    """The network that a folder or file names, or that the user's own factory makes."""
    if model is None and models.is_foreign(name):
        model = import_callable("model", name, given=False)
    if model is not None:
        return models.from_factory(name, model, classes, channels, options)
    with refusing(f"model {name!r}: {{}}", TypeError):  # options that are set otherwise
        return models.create(name, classes, channels, **options)


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
    check_format("pathex", path)
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
    mask, about = Mask.load(folder / "mask.safetensors"), _preprocessing(folder, result)
    facts = {
        "model": config.model,
        "options": config.model_options,
        "classes": len(about.classes),
        "channels": len(about.mean),
        "seed": config.seed,
        "method": config.method,
        "torch": there,
    }
    facts["sha256"] = _digest(_initial(facts, model))
    with refusing(f"cannot write {str(path)!r}: {{}}", OSError):
        write_safetensors(Path(path), codes.pack(mask, **facts), {"file": SEAL})


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
    if wrong := [name for name, kind in _FACTS.items() if not isinstance(facts.get(name), kind)]:
        raise MaskMismatch(f"{path} holds a mask and no ticket: {wrong[0]!r} is {facts.get(wrong[0])!r}")
    check_integer(f"the seed of {path}", facts["seed"], 0, 2**63)
    network = _initial(facts, model)
    if _digest(network) != facts["sha256"]:
        raise InvalidInput(
            f"{path}: the initial weights come out otherwise than with torch {facts.get('torch')}; here is {_version()}"
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
