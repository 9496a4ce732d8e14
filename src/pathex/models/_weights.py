"""Files of weights, read without running code."""

import argparse
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pathex.errors import InvalidInput

__all__ = ["read_file", "read_weights", "tensors_of"]

_WRAPPINGS = ("state_dict", "model")
_PREFIXES = ("_orig_mod.", "module.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file.

    Args:
        path: A safetensors file, or a file of ``torch.save`` that holds a state dict, maybe below ``state_dict`` or
            ``model``. The prefixes of ``DataParallel`` and ``torch.compile`` are taken off.

    Returns:
        Parameter and buffer names with their tensors, on the CPU. A file that is missing or damaged or holds a pickle
        of more than tensors or no state dict raises `pathex.errors.InvalidInput`.
    """
    return tensors_of(read_file(path), path)


def read_file(path: Path) -> object:
    """Read what a weight file holds.

    Args:
        path: A safetensors file or a file of ``torch.save``.

    Returns:
        Tensors, numbers, texts and containers of them, as they were saved; tensors on the CPU.

    Raises:
        InvalidInput: If the file is missing, damaged, or holds a pickle of more than that.
    """
    if not path.is_file():
        raise InvalidInput(f"weights file {str(path)!r} does not exist")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def tensors_of(state: object, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file holds.

    Args:
        state: The content of the file, or the part of it that holds a state dict.
        path: The file, for messages.

    Returns:
        Names with tensors, without the prefixes of ``DataParallel`` and ``torch.compile``.

    Raises:
        InvalidInput: If there is no state dict.
    """
    for key in _WRAPPINGS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(name, str) for name in state):
        raise InvalidInput(f"weights file {str(path)!r} holds no state dict (names with tensors)")
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if len(tensors) < len(state):
        other = next(name for name in state if name not in tensors)
        raise InvalidInput(f"weights file {str(path)!r} holds no state dict: {other!r} is not a tensor")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidInput(f"weights file {str(path)!r} is no readable safetensors file: {_line(error)}") from error


def _read_torch(path: Path) -> object:
    try:
        # Checkpoints of training scripts hold their arguments; a Namespace is no more than names with values.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch warns of what it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidInput(
            f"weights file {str(path)!r} is no torch file of tensors only, and pickles that could run code are not"
            " loaded: save model.state_dict() or a safetensors file"
        ) from error
    except Exception as error:  # damage reaches torch as errors of many kinds
        if "TorchScript archive" in str(error):
            raise InvalidInput(
                f"weights file {str(path)!r} is a TorchScript archive, which holds code and is not loaded: where you"
                " trust it, save torch.jit.load(FILE).state_dict() as a file of its own"
            ) from error
        raise InvalidInput(f"weights file {str(path)!r} is no readable torch file: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
