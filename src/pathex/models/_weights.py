"""Weights from files, read without running code and checked before anything is changed."""

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput, PathexWarning

__all__ = ["load_weights", "read_weights", "warn_head"]

_WRAPPINGS = ("state_dict", "model")
_PREFIXES = ("_orig_mod.", "module.")
_LISTED = 5


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file.

    Args:
        path: A safetensors file, or a file of ``torch.save`` that holds a state dict, maybe below ``state_dict`` or
            ``model``. The prefixes of ``DataParallel`` and ``torch.compile`` are taken off.

    Returns:
        Parameter and buffer names with their tensors, on the CPU.

    Raises:
        InvalidInput: If the file is missing, damaged, holds a pickle of more than tensors, or no state dict.
    """
    if not path.is_file():
        raise InvalidInput(f"weights file {str(path)!r} does not exist")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidInput(
            f"weights file {str(path)!r} is no torch file of tensors only, and pickles that could run code are not"
            " loaded: save model.state_dict() or a safetensors file"
        ) from error
    except Exception as error:  # damage reaches torch as errors of many kinds
        raise InvalidInput(f"weights file {str(path)!r} is no readable torch file: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, num_classes: int, source: str) -> None:
    """Copy tensors into a model after every name and shape has been compared.

    A classifier head of another number of classes stays at its initialization, with a warning. Counters of BatchNorm
    batches, which old files lack, may be missing.

    Args:
        model: The network, changed in place only if everything fits.
        state: Names with tensors.
        num_classes: Outputs of the model, which tell a head from any other layer.
        source: What the messages call the weights.

    Raises:
        InvalidInput: If tensors are missing, unexpected or of another shape; the message lists them.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    differing = [name for name in own if name in state and own[name].shape != state[name].shape]
    head = [name for name in differing if _is_head(model, name, own[name], state[name], num_classes)]
    if missing or unexpected or len(head) < len(differing):
        shapes = [f"{name} ({_shape(state[name])}, model {_shape(own[name])})" for name in differing]
        parts = [("missing", missing), ("unexpected", unexpected), ("other shape", shapes)]
        listing = "; ".join(f"{title}: {_listed(entries)}" for title, entries in parts if entries)
        raise InvalidInput(f"weights {source!r} do not fit {type(model).__name__}: {listing}")
    model.load_state_dict({name: value for name, value in state.items() if name not in head}, strict=False)
    if head:
        warn_head(source, head, state[head[0]].shape[0], num_classes)


def warn_head(source: str, names: Iterable[str], classes: int, num_classes: int) -> None:
    """Warn that a classifier keeps its initialization.

    Args:
        source: What the message calls the weights.
        names: Tensors of the classifier.
        classes: Classes of the weights.
        num_classes: Classes of the model.
    """
    warnings.warn(
        f"{', '.join(names)} stay at their initialization: weights {source!r} are for {classes} classes, the model"
        f" has {num_classes}",
        PathexWarning,
        stacklevel=2,
    )


def _is_head(model: nn.Module, name: str, own: Tensor, given: Tensor, num_classes: int) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    fits = own.ndim == given.ndim > 0 and own.shape[1:] == given.shape[1:] and own.shape[0] == num_classes
    return fits and isinstance(owner, (nn.Linear, nn.Conv2d))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(entries: list[str]) -> str:
    more = f" and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
    # Names come from the file: a damaged one may hold line breaks.
    return " ".join(", ".join(entries[:_LISTED]).split()) + more
