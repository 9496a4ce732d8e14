"""Checkpoints that a killed process never leaves half-written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pathex.errors import InvalidInput

__all__ = ["load_checkpoint", "replacing", "save_checkpoint"]


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
    """Save nested dictionaries and lists of tensors, numbers and text atomically."""
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
