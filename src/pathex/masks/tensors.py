"""Files of weights, read without running code, and files that are never half-written."""

import argparse
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from pathex.errors import InvalidInput, reason


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file in one step: the block gets a temporary file, which takes the place of ``path`` if all goes well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a safetensors or torch file on the CPU; :class:`~pathex.errors.InvalidInput` without one."""
    return state_dict_in(read_file(path), path)


def read_file(path: Path) -> object:
    """What a weight file holds, tensors on the CPU; only tensors, numbers, texts and containers of them are read."""
    if not path.is_file():
        raise InvalidInput(f"weights file {str(path)!r} does not exist")
    kind = "safetensors" if path.suffix == ".safetensors" else "torch"
    try:
        return _content(path)
    except pickle.UnpicklingError as error:
        raise InvalidInput(
            f"weights file {str(path)!r} is no torch file of tensors only, and pickles that could run code are not"
            " loaded: save model.state_dict() or a safetensors file"
        ) from error
    except Exception as error:  # damage reaches both libraries as errors of many kinds
        if "TorchScript archive" in str(error):
            raise InvalidInput(
                f"weights file {str(path)!r} is a TorchScript archive, which holds code and is not loaded: where you"
                " trust it, save torch.jit.load(FILE).state_dict() as a file of its own"
            ) from error
        raise InvalidInput(f"weights file {str(path)!r} is no readable {kind} file: {reason(error)}") from error


def state_dict_in(state: object, path: Path) -> dict[str, Tensor]:
    """The state dict that a file (``path``, for messages) holds, maybe below ``state_dict`` or ``model``."""
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(name, str) for name in state):
        raise InvalidInput(f"weights file {str(path)!r} holds no state dict (names with tensors)")
    other = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise InvalidInput(f"weights file {str(path)!r} holds no state dict: {other!r} is not a tensor")
    tensors = dict(state)
    for prefix in ("_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _content(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    # Checkpoints of training scripts hold their arguments; a Namespace is no more than names with values.
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        warnings.simplefilter("ignore")  # torch warns of what it then refuses
        return torch.load(path, map_location="cpu", weights_only=True)
