"""The state dict in a file of weights."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pathex.errors import InvalidInput, PathexWarning, listed
from pathex.files import read_file
from pathex.masks.wrappers import without_wrappers

_KEYS = ("state_dict", "model_state_dict", "model", "net", "ema", "masks")
"""Above the state dict in checkpoints of training scripts, those that are meant first."""


def read_weights(path: Path, first: str = _KEYS[0]) -> dict[str, Tensor]:
    """The state dict of a file, as `state_dict_in` chooses it; `pathex.errors.InvalidInput` without one."""
    return state_dict_in(read_file(path), path, first)


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
