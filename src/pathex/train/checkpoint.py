"""Checkpoints that a killed process never leaves half-written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pathex.errors import InvalidInput

__all__ = ["load_checkpoint", "replacing", "restore_rng", "rng_state", "save_checkpoint"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file in one step: the block writes a temporary file, which then takes the place of ``path``.

    The temporary name is always the same, so that what a killed process left is overwritten by the next one.

    Args:
        path: The file to write.

    Yields:
        The temporary file, in the same folder.
    """
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    temporary.replace(path)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save tensors and plain values atomically.

    Args:
        path: The file to write.
        state: Nested dictionaries and lists of tensors, numbers and text.
    """
    # Fabric's own save goes through the system's temporary folder, from where no rename is atomic.
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load what ``save_checkpoint`` wrote, onto the CPU, and nothing but tensors and plain values.

    Args:
        path: The file to read.

    Returns:
        The saved state.

    Raises:
        InvalidInput: If the file cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InvalidInput(f"checkpoint {path} cannot be read ({error}); delete it to train again") from error


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """State of the global random generators that layers such as dropout draw from.

    Args:
        device: The device of the training.

    Returns:
        The state of the CPU's generator and, on CUDA, of the device's.
    """
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore what ``rng_state`` returned.

    Args:
        state: Saved states; one of a device that is not used now is left aside.
        device: The device of the training.
    """
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
