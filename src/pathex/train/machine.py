"""The device and the precision that a network is trained with."""

from typing import Any

import torch

from pathex.errors import InvalidInput, UnknownName

__all__ = ["DEVICES", "PRECISIONS", "check_machine", "fabric"]

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed")


def check_machine(device: str, precision: str = "32-true") -> str:
    """Choose the accelerator, and refuse what this machine cannot do.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: One of ``PRECISIONS``.

    Returns:
        ``cpu`` or ``cuda``.

    Raises:
        InvalidInput: If a name is unknown, no CUDA device is there, or the precision needs one.
    """
    _check_name("device", device, DEVICES)
    _check_name("precision", precision, PRECISIONS)
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device 'cuda': PyTorch finds no CUDA device here. Allowed here: auto, cpu")
    accelerator = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if precision == "16-mixed" and accelerator == "cpu":
        allowed = ", ".join(name for name in PRECISIONS if name != "16-mixed")
        raise InvalidInput(f"precision '16-mixed' needs a CUDA device. Allowed on the CPU: {allowed}")
    return accelerator


def fabric(device: str = "auto", precision: str = "32-true") -> Any:
    """A Lightning Fabric for one device.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: One of ``PRECISIONS``.

    Returns:
        The ``lightning_fabric.Fabric``; ``.device`` is the device that it uses.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    accelerator = check_machine(device, precision)
    # The environment is named, or Fabric would read a cluster's variables and expect a process for each of its tasks.
    return Fabric(accelerator=accelerator, devices=1, precision=precision, plugins=[LightningEnvironment()])


def _check_name(kind: str, name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        raise UnknownName(kind, name, allowed)
