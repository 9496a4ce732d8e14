"""Files of weights, read without running code, and files that are never half-written."""

import argparse
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pathex.errors import InvalidInput, PathexWarning, listed, naming, reason
from pathex.masks.wrappers import without_wrappers

_KEYS = ("state_dict", "model_state_dict", "model", "net", "ema", "masks")
"""Above the state dict in checkpoints of training scripts, those that are meant first."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file in one step: the block gets a temporary file, which takes the place of ``path`` if all goes well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_weights(path: Path, first: str = _KEYS[0]) -> dict[str, Tensor]:
    """The state dict of a file, as `state_dict_in` chooses it; :class:`~pathex.errors.InvalidInput` without one."""
    return state_dict_in(read_file(path), path, first)


def read_file(path: Path) -> object:
    """What a weight file holds, tensors on the CPU; only tensors, numbers, texts and containers of them are read."""
    if not path.is_file():
        raise InvalidInput(f"weights file {str(path)!r} does not exist")
    kind = path.suffix.removeprefix(".") if path.suffix in {".safetensors", ".npz"} else "torch"
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


def state_dict_in(state: object, path: Path, first: str = _KEYS[0]) -> dict[str, Tensor]:
    """The state dict in what a file (``path``, for messages) holds; of several that below the key ``first``, if any."""
    what = f"weights file {str(path)!r}"
    if found := _state_dicts(state, ""):
        ranked = (name for key in (first, *_KEYS) for name in found if key in name.split("."))
        chosen = next(iter(found) if len(found) == 1 else ranked, None)
        if chosen is None:
            raise InvalidInput(
                f"{what} holds several state dicts ({listed(list(found))}): save one as a file by itself"
            )
        state = found.pop(chosen)
        if found:
            warnings.warn(f"{what}: {chosen!r} is read, not {listed(list(found))}", PathexWarning, stacklevel=3)
    if not isinstance(state, Mapping) or not state or not all(isinstance(name, str) for name in state):
        raise InvalidInput(f"{what} holds no state dict (names with tensors)")
    other = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise InvalidInput(f"{what} holds no state dict: {other!r} is not a tensor")
    return without_wrappers({n: t if t.layout is torch.strided else t.to_dense() for n, t in state.items()})


def _state_dicts(state: object, at: str) -> dict[str, Mapping[str, Tensor]]:
    """Every state dict in what a file holds, by the keys above it. Numbers of a training may be tensors too."""
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        return {}
    if any(isinstance(value, Tensor) and value.dim() > 1 for value in state.values()):
        return {at: state}
    below = [_state_dicts(value, f"{at}.{key}" if at else key) for key, value in state.items()]
    return {name: found for each in below for name, found in each.items()}


def _content(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {n: torch.from_numpy(array) if array.dtype.kind in "biuf" else array for n, array in arrays.items()}
    # Checkpoints of training scripts hold their arguments; a Namespace is no more than names with values.
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        warnings.simplefilter("ignore")  # torch warns of what it then refuses
        return torch.load(path, map_location="cpu", weights_only=True)
