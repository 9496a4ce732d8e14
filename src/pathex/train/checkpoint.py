"""Checkpoints that a killed process never leaves half-written."""

from pathlib import Path
from typing import Any

import torch

from pathex.errors import InvalidInput, reason
from pathex.masks import replacing


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save nested dictionaries and lists of tensors, numbers and text atomically."""
    # Fabric's own save goes through the system's temporary folder, from where no rename is atomic.
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load what ``save_checkpoint`` wrote, onto the CPU, and nothing but tensors and plain values."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InvalidInput(f"checkpoint {path} cannot be read ({reason(error)}); delete it to train again") from error
