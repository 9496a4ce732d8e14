"""Compacted networks in files: their weights, and what was cut, by which the model is cut again."""

import json
import os
from pathlib import Path
from typing import Any, cast

from torch import nn

from pathex import __version__
from pathex.compaction.plan import RECIPE
from pathex.compaction.surgery import carve
from pathex.errors import InvalidInput, refusing
from pathex.files import SEAL, read_safetensors, write_safetensors
from pathex.graph import copied

_SCHEMA = 1


def save(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a network that `compact` made as safetensors: its state, and in the header as JSON what was cut.

    Raises:
        InvalidInput: If the network was not compacted, or the file cannot be written.
    """
    recipe = getattr(network, RECIPE, None)
    if recipe is None:
        raise InvalidInput(f"{type(network).__name__} is not a network that pathex.compact made")
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    header = {"schema": _SCHEMA, "pathex_version": __version__, "recipe": recipe, "file": SEAL}
    with refusing(f"cannot write the network {path}: {{}}", OSError):
        write_safetensors(Path(path), tensors, {RECIPE: json.dumps(header)})


def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Read a compacted network that `save` wrote; no code is run.

    Args:
        path: The file.
        model: The network before it was compacted, with any weights; left as it is.

    Returns:
        A copy of the model, cut and with the weights of the file, in the model's mode and precision.

    Raises:
        InvalidInput: If the file is missing, damaged or no compacted network, or does not fit the model.
    """
    tensors, header = read_safetensors(Path(path), RECIPE)
    if not isinstance(header, dict) or header.get("schema") != _SCHEMA:
        raise InvalidInput(f"{path} holds no compacted network of schema {_SCHEMA}")
    network, recipe = copied(model), cast(Any, header.get("recipe"))
    own = {name: list(tensor.shape) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    kinds = (AttributeError, RuntimeError, LookupError, TypeError, ValueError)
    with refusing(f"{path} does not fit {type(model).__name__}: {{}}", *kinds):
        for name, shape in recipe["shapes"].items():
            if own.get(name) != shape:
                raise InvalidInput(f"{name!r} is {own.get(name)}, not {shape}")
        for place, sizes in recipe["attributes"].items():
            for name, size in sizes.items():  # a file sets no other attribute
                if not (type(size) is type(getattr(network.get_submodule(place), name, None)) is int):
                    raise InvalidInput(f"{place!r} has no whole number {name!r} that could be {size!r}")
        carve(network, recipe, {})
        network.load_state_dict(tensors)
    setattr(network, RECIPE, recipe)
    return network
